"""Progress of a command: bars with the time left on a terminal, elsewhere a line a minute.

Both go to standard error. A stage without reports is still said to be running, so that no log stays empty.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from persona_circuits.circuit.progress import Progress, Stage, duration

__all__ = ["MinuteLines", "progress_bars"]

EVERY = 60.0
"""Seconds between two lines in a log."""


class MinuteLines:
    """The running stage, with a line about it whenever a minute has passed since the last one.

    ``clock`` gives seconds, ``tell`` prints a line; ``beat`` is to be called from time to time.
    """

    def __init__(self, clock: Callable[[], float], tell: Callable[[str], None], every: float = EVERY) -> None:
        self.clock, self.tell, self.every = clock, tell, every
        self.said = self.begun = clock()
        self.name, self.done, self.total = "", 0, 0

    def stage(self, name: str) -> Progress:
        """Begin a stage; the function returned reports its progress."""
        self.name, self.begun, self.done, self.total = name, self.clock(), 0, 0
        return self._progress

    def _progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.beat()

    def beat(self) -> None:
        """Say how far it is, if a minute has gone by."""
        now = self.clock()
        if not self.name or now - self.said < self.every:
            return
        self.said, spent = now, now - self.begun
        far = f"{self.done:,} of {self.total:,}, " if self.total else ""
        left = f", about {duration(spent * (self.total - self.done) / self.done)} left" if self.done else ""
        self.tell(f"{self.name}: {far}{duration(spent)} so far{left}")


@contextlib.contextmanager
def progress_bars() -> Iterator[Stage]:
    """Bars on standard error, one per stage, with the time left; without a terminal, a line a minute."""
    if os.environ.get("RANK", "0") != "0":
        yield lambda _name: lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bars() as stage:
            yield stage
    else:
        with _lines() as stage:
            yield stage


@contextlib.contextmanager
def _lines() -> Iterator[Stage]:
    from persona_circuits.circuit.printable import one_line
    from persona_circuits.commands.terminal import say

    lines = MinuteLines(time.monotonic, lambda text: say(one_line(text, 200), err=True))
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(1.0):
            lines.beat()

    heart = threading.Thread(target=beats, daemon=True)
    heart.start()
    try:
        yield lines.stage
    finally:
        ended.set()
        heart.join()


@contextlib.contextmanager
def _bars() -> Iterator[Stage]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from persona_circuits.circuit.printable import one_line

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def stage(name: str) -> Progress:
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, total=1, completed=1, left="")
            task_id, begun = bars.add_task(one_line(name, 80), total=None, left=""), time.monotonic()

            def tell(done: int, total: int) -> None:
                spent = time.monotonic() - begun
                left = f"about {duration(spent * (total - done) / done)} left" if 0 < done < total else ""
                bars.update(task_id, completed=done, total=total, left=left)

            return tell

        yield stage
