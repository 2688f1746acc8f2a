"""How far a long work is: callbacks that the command line turns into bars."""

from __future__ import annotations

from collections.abc import Callable

__all__ = [
    "Progress",
    "Stage",
    "untold",
    "untold_stage",
]

Progress = Callable[[int, int], None]
"""Called with the work done and the work there is; never called from another thread."""
Stage = Callable[[str], Progress]
"""Called when a stage of the work begins, with its name; gives the stage's progress callback."""


def untold(_done: int, _total: int) -> None:
    """The progress that nobody wants to hear of."""


def untold_stage(_name: str) -> Progress:
    """The same of every stage."""
    return untold
