"""Disentangled gradient learning (Wei et al., ICCV 2025, arXiv 2507.10213)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Combiner


@dataclass(frozen=True, kw_only=True)
class DGL(Combiner):
    """Trains the encoders on their unimodal losses alone, and the fusion on the multimodal loss.

    The gradient that comes back from the fusion is dropped at the encoder's output, and the unimodal classifiers
    are not part of the fusion, so neither side sees the other's gradient.

    >>> import torch
    >>> DGL().combine(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([3.])
    """

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """The unimodal gradient."""
        return unimodal
