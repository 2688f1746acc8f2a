"""What a step costs: seconds of wall time, and the bytes that torch's own allocator hands out.

On an accelerator the clock is read only when all work before it is done, and the peak is the caching allocator's. On a
CPU neither tracemalloc (which does not see torch) nor the resident set (which includes every library and hardly ever
shrinks) will do: one more, untimed round runs under torch's profiler, and every allocation and release is added up.
Buffers that other libraries hold for themselves are not in it.

Needs torch and nothing else of this project, so that other programs' environments can use it too.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Cost", "Step", "cost_of", "costs_of", "peak_bytes", "process_peak_bytes", "seconds_of"]

Step = Callable[[], Any]


@dataclass(frozen=True)
class Cost:
    """Wall time of every round, and the peak of allocated bytes beyond those at the start of the step.

    ``peak_bytes`` is None where the device keeps no count.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds)


def costs_of(
    steps: Mapping[str, Step],
    device: Any,
    *,
    rounds: int,
    warmup: int = 1,
    memory: bool = True,
    before_peak: Callable[[], None] | None = None,
) -> dict[str, Cost]:
    """Costs of several steps, their rounds taken in turn, so that a machine that slows down slows all of them.

    Parameters
    ----------
    steps
        Functions of no argument, by name; what they return is dropped at once.
    device
        Where they compute (``torch.device`` or its name).
    rounds, warmup
        Timed and untimed rounds of each.
    memory
        Take the peak too, in one more round of each.
    before_peak
        Called before each of these, to free memory that is kept between rounds.
    """
    for _ in range(warmup):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, device))
    peaks: dict[str, int | None] = dict.fromkeys(steps)
    for name, step in steps.items() if memory else ():
        if before_peak is not None:
            before_peak()
        peaks[name] = peak_bytes(step, device)
    return {name: Cost(tuple(seconds[name]), peaks[name]) for name in steps}


def cost_of(step: Step, device: Any, *, rounds: int, warmup: int = 1, memory: bool = True) -> Cost:
    """The cost of one step; see ``costs_of``."""
    return costs_of({"": step}, device, rounds=rounds, warmup=warmup, memory=memory)[""]


def seconds_of(step: Step, device: Any) -> float:
    """Wall time of one run, from an idle device to an idle device."""
    _wait_for(device)
    start = time.perf_counter()
    step()
    _wait_for(device)
    return time.perf_counter() - start


def peak_bytes(step: Step, device: Any) -> int | None:
    """The peak of bytes allocated during one run, beyond those allocated at its start."""
    import torch

    kind = torch.device(device).type
    gc.collect()
    if kind == "cpu":
        return _cpu_peak(step)
    if kind != "cuda":
        return None
    _wait_for(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def process_peak_bytes() -> int:
    """The largest resident set that this process ever had: weights, libraries and all."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait_for(device: Any) -> None:
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def _cpu_peak(step: Step) -> int:
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak
