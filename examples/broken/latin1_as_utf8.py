# -*- coding: utf-8 -*-
text = "café"
