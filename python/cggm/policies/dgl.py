"""Disentangled gradient learning (Wei et al., ICCV 2025, arXiv 2507.10213)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Place, Policy


@dataclass(frozen=True, kw_only=True)
class DGL(Policy):
    """Encoders learn from their unimodal loss alone, the fusion from the multimodal loss on detached features.

    The gradient that comes back from the fusion is dropped at the encoder's output, and the unimodal classifiers
    are not part of the fusion, so neither side sees the other's gradient.

    >>> import torch
    >>> DGL().meet(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([3.])
    """

    places: ClassVar[tuple[Place, ...]] = ("junction",)
    detach_features: ClassVar[bool] = False

    def meet(self, multimodal: Tensor, unimodal: Tensor | None) -> Tensor:
        """The unimodal gradient; the multimodal one where no unimodal loss has been balanced."""
        return multimodal if unimodal is None else unimodal
