"""Responses of a model, here or behind an endpoint, and their ratings.

Every name is imported when it is first used; ``__init__.pyi`` beside this file says where each is from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
