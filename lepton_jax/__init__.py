"""Lepton: a functional training framework on JAX. Names load on first use, so importing it costs next to nothing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
