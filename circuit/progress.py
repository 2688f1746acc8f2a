"""Progress of long work: callbacks that the command line turns into bars."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "Stage", "about", "duration", "first_told", "untold", "untold_stage"]

Progress = Callable[[int, int], None]
"""Called with the amount of work done and its total; never called from another thread."""
Stage = Callable[[str], Progress]
"""Called when a stage of the work begins, with its name; gives the stage's progress callback."""


def duration(seconds: float) -> str:
    """A time for people, in seconds, minutes or hours.

    Examples:
        >>> duration(7.25), duration(200), duration(10_000)
        ('7.2 s', '3.33 min', '2.78 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def about(seconds: float) -> str:
    """How long some work may take, to follow its name; empty where that is under a second.

    Examples:
        >>> about(200), about(0.3)
        (', about 3.33 min', '')
    """
    return f", about {duration(seconds)}" if seconds >= 1 else ""


def first_told(stage: Stage, what: str, seconds: float) -> Stage:
    """The same stages; the name of the first also says how long ``what``, all work that begins with it, may take."""
    notes = [f"; {what}{about(seconds)}"] if about(seconds) else []
    return lambda name: stage(f"{name}{notes.pop() if notes else ''}")


def untold(_done: int, _total: int) -> None:
    """Progress that is ignored."""


def untold_stage(_name: str) -> Progress:
    """Ignored progress for every stage."""
    return untold
