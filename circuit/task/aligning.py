"""Which place of one prompt stands for which place of another, where they differ in length.

Two prompts of a pair share their beginning and their end and differ in between, in the persona. The ends are
laid on each other from the left and from the right. In between the prompts are aligned on the right, last token on last
token; where the first prompt has more tokens there, those that are left over stand against the mean of the other's.
Nothing is ever padded between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["alignment", "shared_ends"]


def shared_ends(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many tokens both begin with, and how many both end with; the two never overlap in either prompt."""
    shorter = min(len(first), len(second))
    begin = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    left = shorter - begin
    end = next((i for i in range(left) if first[-1 - i] != second[-1 - i]), left)
    return begin, end


def alignment(first: Sequence[int], second: Sequence[int]) -> Float[Tensor, "first_pos second_pos"]:
    """The share that each place of ``second`` has in what stands against each place of ``first``; rows sum to one."""
    n, m = len(first), len(second)
    begin, end = shared_ends(first, second)
    shares = torch.zeros(n, m)
    shares[range(begin), range(begin)] = 1.0
    # From the right: the common end, then what differs, for as long as both have a token.
    both = min(n, m) - begin
    shares[range(n - both, n), range(m - both, m)] = 1.0
    left_over, others = slice(begin, n - both), slice(begin, m - end)
    if m - end > begin:
        shares[left_over, others] = 1.0 / (m - end - begin)
    else:
        shares[left_over, max(begin - 1, 0)] = 1.0
    return shares
