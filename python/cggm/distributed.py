"""Everything that differs when several processes train one model, in one place."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the default group, 1 without one.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(sums: Tensor) -> Tensor:
    """Sums over all ranks: the one collective that a step needs.

    Every rank calls it once in every step, so that coefficients made from the result are the same everywhere.

    Args:
        sums: `[M + 1]` float32, this rank's sums of scores and its number of samples; left alone.
    """
    if world_size() > 1:
        sums = sums.clone()
        dist.all_reduce(sums)
    return sums
