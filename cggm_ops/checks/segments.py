"""Checks of the arguments of `segment_gram` and `segment_combine_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops.checks.tensors import (
    check_dtype,
    check_factors,
    check_not_written,
    check_same_device,
    check_written,
)


def check_sets(tensors: Sequence[Tensor], sets: int) -> None:
    """Refuse gradient sets that no operator can take."""
    if sets < 1 or not tensors or len(tensors) % sets:
        raise ValueError(
            f"sets must be one or more lists of equally many tensors, found {len(tensors)} tensors in {sets} sets"
        )
    count = len(tensors) // sets
    for position, tensor in enumerate(tensors):
        first = tensors[position % count]
        name = f"sets[{position // count}][{position % count}]"
        check_dtype(tensor, name)
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, found {tensor.layout}: call .to_dense() on it")
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(
                f"{name} must have the shape and dtype of its segment in sets[0] ({list(first.shape)}, {first.dtype}), "
                f"found {list(tensor.shape)}, {tensor.dtype}"
            )
        check_same_device(tensor, tensors[0], name, "sets[0][0]")


def check_combination(into: Sequence[Tensor], others: Sequence[Tensor], weights: Tensor) -> None:
    """Refuse what `segment_combine_` cannot take."""
    check_factors(weights, 2, "weights")
    count, sets = weights.shape
    if len(into) != count or len(others) != count * (sets - 1):
        raise ValueError(
            f"weights [{count}, {sets}] must have one row per tensor of a set ({len(into)}) and one column per set, "
            f"found {len(others)} tensors in the other sets"
        )
    if not into:
        return
    check_sets([*into, *others], sets)
    check_same_device(into[0], weights, "sets", "weights")
    written = check_written({"sets[0]": into})
    check_not_written(weights, "weights", written)
    for index, other in enumerate(others):
        check_not_written(other, f"others[{index}]", written)
