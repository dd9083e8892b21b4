"""Unimodal losses: the classifiers' losses reach the encoders too (the "uniform" baseline of arXiv 2405.17730)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Place, Policy, check_range


@dataclass(frozen=True, kw_only=True)
class UnimodalLosses(Policy):
    """Adds each unimodal loss's gradient to the encoder's: `g = g_multimodal + weight · g_unimodal`.

    The sum is taken at the encoder's output, so that one backward pass through the encoder serves both losses.
    The classifiers themselves learn from their losses at weight 1.

    Args:
        weight: factor of the unimodal gradient, `>= 0`.

    Raises:
        ValueError: a negative weight.

    >>> UnimodalLosses(weight=2.0).meet(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([7.])
    """

    weight: float = 1.0
    places: ClassVar[tuple[Place, ...]] = ("junction",)
    detach_features: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0)

    @property
    def adds(self) -> bool:
        """At weight 1."""
        return self.weight == 1 and getattr(self.meet, "__func__", None) is UnimodalLosses.meet

    def meet(self, multimodal: Tensor, unimodal: Tensor | None) -> Tensor:
        """`multimodal + weight · unimodal`."""
        return multimodal if unimodal is None else torch.add(multimodal, unimodal, alpha=self.weight)
