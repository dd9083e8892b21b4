"""Unimodal losses: the classifiers' losses reach the encoders too (the "uniform" baseline of arXiv 2405.17730)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cggm.arguments import check_range

from .roles import Combiner


@dataclass(frozen=True, kw_only=True)
class UnimodalLosses(Combiner):
    """Adds the gradient of each unimodal loss to its encoder's gradient: `g = g_multimodal + weight · g_unimodal`.

    The sum is taken at the encoder's output, so one backward pass through the encoder serves both losses. The
    classifiers themselves train on their losses at weight 1.

    Args:
        weight: factor of the unimodal gradient, `>= 0`.

    Raises:
        ValueError: `weight` is negative.

    >>> UnimodalLosses(weight=2.0).combine(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([7.])
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0)

    def combine(self, multimodal: Tensor, unimodal: Tensor, weight: Tensor | None = None) -> Tensor:
        """`multimodal + self.weight · unimodal`; the second term is also multiplied by `weight` `[]` if given."""
        if weight is not None:
            unimodal = unimodal * weight.to(unimodal.dtype)
        return torch.add(multimodal, unimodal, alpha=self.weight)
