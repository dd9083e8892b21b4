"""Conversions that the definitions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Convert to the dtype of arithmetic: float32, or float64 for float64."""
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)


def stack_rows(like: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of as many elements as `like` in float64, [len(tensors), D]."""
    if not tensors:
        return like.new_empty((0, like.numel()), dtype=torch.float64)
    return torch.stack([tensor.double().reshape(-1) for tensor in tensors])
