"""Why a pair collapses: a verdict, and the causal test that must agree.

Every name is imported when it is first used; ``__init__.pyi`` beside this file says where each is from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
