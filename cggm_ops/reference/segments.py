"""The definitions of `segment_gram` and `segment_combine_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops.checks.segments import check_combination, check_sets
from cggm_ops.reference.tensors import stack_rows, widen


def segment_gram(tensors: Sequence[Tensor], sets: int) -> Tensor:
    """Return all dot products of K sets of S tensors, given one set after the other, per segment: [S, K, K]."""
    check_sets(tensors, sets)
    count = len(tensors) // sets
    rows = [stack_rows(tensors[0], tensors[segment::count]) for segment in range(count)]  # S times [K, N]
    grams = torch.stack([row @ row.T for row in rows])  # [S, K, K]
    return grams.triu() + grams.triu(1).mT  # the two halves may have been rounded differently


def segment_combine_(into: Sequence[Tensor], others: Sequence[Tensor], weights: Tensor) -> None:
    """Write Σ_k weights[s, k] g_k[s] over the tensors of set 0; `others` holds the sets 1 to K - 1."""
    check_combination(into, others, weights)
    for segment, target in enumerate(into):
        total = widen(target)
        scales = weights[segment].to(total.dtype)  # [K]
        total = total * scales[0]
        for scale, other in zip(scales[1:], others[segment :: len(into)], strict=True):
            total = total + widen(other) * scale
        target.copy_(total)
