"""Functions from logits to one number per prompt, pair or question. A leaf: torch and nothing else of this project."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
