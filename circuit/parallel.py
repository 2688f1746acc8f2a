"""Work shared by several processes, started by torchrun; with one process everything here does nothing.

Prompts are split over the processes. Their results are combined by ``gathered`` (values by key) or ``summed`` (arrays
to add), after which every process has the same values; only the first prints and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

__all__: list[str] = []

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Item = TypeVar("Item")


def launched() -> int:
    """The number of processes that the launcher started, one without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the other processes for the time of a block: NCCL where every process has a GPU of its own, else Gloo."""
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    has_own_gpu = torch.cuda.device_count() > local
    if has_own_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_own_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """The number of processes that share the work."""
    return _world()[1]


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return _world()[0] == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of the items: every n-th, so that long and short ones are mixed."""
    rank, n = _world()
    return items if n == 1 else items[rank::n]


def gathered(own: Mapping[Key, Value]) -> dict[Key, Value]:
    """The values of all processes by key; keys are unique, as each belongs to a prompt."""
    _, n = _world()
    if n == 1:
        return dict(own)
    import torch.distributed as dist

    parts: list[dict[Key, Value]] = [{}] * n
    dist.all_gather_object(parts, dict(own))
    return {key: value for part in parts for key, value in part.items()}


def summed(values: np.ndarray) -> np.ndarray:
    """The sum of all processes' arrays, in float64 and in their order, so that every process has the same bits."""
    _, n = _world()
    if n == 1:
        return values
    import torch
    import torch.distributed as dist

    total = torch.from_numpy(np.array(values, dtype=np.float64))
    dist.all_reduce(total)
    return total.numpy()


def _world() -> tuple[int, int]:
    if launched() == 1:
        return 0, 1
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
