"""Find, test and draw the circuit that carries a persona into a preference.

Every name is imported when it is first used, so that importing the package costs nothing; ``__init__.pyi``
beside this file says where each is from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
