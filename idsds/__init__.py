"""Measure the attribution quality of vision models: IDSDS and its rivals, from records to figures.

The public names stand in ``__init__.pyi``. Each is imported when it is first used, so that ``import idsds`` costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
