"""A network in float64 throughout.

Norms, rotations and softmaxes of the host libraries convert to float32 whatever the weights are in, so a model
of float64 weights has only float32's precision. Within ``Wide.on`` a conversion to float32 is one to float64, and
every module of the libraries enters it while it runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Wide"]


class Wide:
    """What the modules of one network share: whether one of them is running already."""

    def __init__(self) -> None:
        self._inside = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within the block float32 is read as float64, and new tensors are float64 by default."""
        if self._inside:
            yield
            return
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        self._inside = True
        try:
            with _Widening():
                yield
        finally:
            self._inside = False
            torch.set_default_dtype(default)

    def while_they_run(self, modules: Iterable[torch.nn.Module]) -> None:
        """Make the modules enter ``on``, except torch's own, which compute in the format of their inputs.

        Their classes are replaced by subclasses, as other functions take the place of an instance's ``forward``
        for a time.
        """
        kinds: dict[type, type] = {}
        for module in modules:
            kind = type(module)
            if kind.__module__.startswith("torch."):
                continue
            if kind not in kinds:
                own = {"forward": self._wrapped(kind.forward), "__module__": kind.__module__}
                kinds[kind] = type(kind.__name__, (kind,), own)
            module.__class__ = kinds[kind]
            if "forward" in vars(module):
                vars(module)["forward"] = self._wrapped(vars(module)["forward"])

    def _wrapped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.on():
                return forward(*args, **kwargs)

        return run


class _Widening(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = Tensor.double if func is Tensor.float else func
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return function(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
