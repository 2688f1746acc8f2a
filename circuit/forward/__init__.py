"""Forward passes: plain ones, patched ones, and the metric of either."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
