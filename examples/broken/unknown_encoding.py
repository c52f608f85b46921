# -*- coding: klingon-8 -*-
x = 1
