"""Disentangled gradient learning (Wei et al., ICCV 2025, arXiv 2507.10213)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cggm.arguments import check_range

from .roles import Combiner


@dataclass(frozen=True, kw_only=True)
class DGL(Combiner):
    """Trains the encoders only on their unimodal losses, times α, and the fusion on the multimodal loss.

    The gradient that comes back from the fusion is dropped at the encoder's output, and the unimodal classifiers
    are not part of the fusion, so neither side sees the other's gradient. The paper's unimodal classifiers are the
    fusion's own layers, run with the other modalities' features zeroed, with α = 4: that is `DGL(weight=4)` with
    `Encoder(..., classifier="fusion")` for each encoder. By default they are separate modules.

    Args:
        weight: α, factor of the unimodal gradient, `>= 0`.

    Raises:
        ValueError: `weight` is negative.

    >>> import torch
    >>> DGL(weight=4.0).combine(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([12.])
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0)

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """`self.weight · unimodal`."""
        return unimodal if self.weight == 1 else unimodal * self.weight
