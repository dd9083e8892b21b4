"""Small tensors on a device, made without waiting for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device) -> Tensor:
    """A float32 tensor of the values, made once per device: copying from the host in every step would wait for it.

    Args:
        values: numbers, or tuples of numbers of one length.
        device: the tensor's device.

    >>> constant(((1.0, 0.0), (0.0, 1.0)), torch.device("cpu")).shape
    torch.Size([2, 2])
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def table(values: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """A float32 tensor `[R, C]` of values that change from step to step, copied to a GPU from pinned memory.

    Args:
        values: R rows of C numbers.
        device: the tensor's device.

    >>> table([[1.0, 2.0]], torch.device("cpu"))
    tensor([[1., 2.]])
    """
    rows = torch.tensor(values, dtype=torch.float32)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)
