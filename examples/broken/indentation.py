class Half:
        def a(self): pass
    def b(self): pass
