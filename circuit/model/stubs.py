"""Running parts of the host library's model: what is stubbed, silenced or prevented while it runs."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Body",
    "Stop",
    "nothing_collected",
    "nothing_installed",
    "quiet",
    "returning",
    "returning_nothing",
    "seeing",
    "stop",
    "stubbed_forward",
    "unchanged",
]


def seeing(value: Any) -> Any:
    """A mask ``[batch, 1, query, key]`` in which padding sees itself; any other value unchanged.

    A query that sees nothing has no softmax: what it gives (nan, in some formats) would
    be multiplied by zero weights later and still spoil every row.
    """
    if not (isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]):
        return value
    own = torch.eye(value.shape[-1], dtype=torch.bool, device=value.device)
    if value.dtype == torch.bool:
        return value | (own & ~value.any(-1, keepdim=True))
    blind = value.amax(-1, keepdim=True) <= torch.finfo(torch.float16).min
    return value.masked_fill(own & blind, 0.0)


class Body:
    """What a host's body gives its head: the last hidden state, and None for all else that it may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == 0 else () if isinstance(place, slice) else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Stop(Exception):
    """Ends the host's forward pass once the context is known."""


def stop(*_: Any, **__: Any) -> None:
    raise Stop


def unchanged(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def returning_nothing(count: int) -> Callable[..., Any]:
    """Zeros in the shape of the input, as the first of ``count`` values of a tuple if that is not 0."""

    def stub(x: Tensor, *_: Any, **__: Any) -> Any:
        return (torch.zeros_like(x), *[None] * (count - 1)) if count else torch.zeros_like(x)

    return stub


def returning(x: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: x


@contextlib.contextmanager
def stubbed_forward(stubs: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace modules' ``forward`` by other functions within the block."""
    try:
        for module, stub in stubs.items():
            module.__dict__["forward"] = stub
        yield
    finally:
        for module in stubs:
            module.__dict__.pop("forward", None)


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """No garbage collection while a model is built of hundreds of thousands of objects, all of which stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def nothing_installed() -> Iterator[None]:
    """Keep the host library from looking for an image processor: where it finds none, it runs pip to get one.

    Nor does it load the tokenizer a second time, which would not be the revision that is pinned.
    """
    from transformer_lens.model_bridge.sources.transformers import source

    load, configure = source.load_modality_processor, source.configure_tokenizer
    source.load_modality_processor = lambda *_, **__: None
    source.configure_tokenizer = lambda tokenizer, *_, **__: tokenizer
    try:
        yield
    finally:
        source.load_modality_processor, source.configure_tokenizer = load, configure


class _Kept(logging.Handler):
    """Keeps messages instead of showing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        # ``check_keys`` refuses by the report of missing and surplus weights; to TransformerLens the name of a folder
        # may be an old one of its own names for models.
        if "LOAD REPORT" not in text and not text.startswith("DEPRECATED") and text not in self.notes:
            self.notes.append(text)


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Collect the libraries' messages while a model loads, except progress bars and deprecation warnings."""
    import warnings

    from transformers.utils import logging as hf_logging

    bars, level, kept = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity(), _Kept()
    loggers = [logging.getLogger(name) for name in (None, "transformers", "transformer_lens")]
    before = [logger.handlers for logger in loggers]
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_warning()
    for logger in loggers:
        logger.handlers = [kept]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield kept.notes
    finally:
        kept.notes.extend(" ".join(str(warning.message).split()) for warning in caught)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
