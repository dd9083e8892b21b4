"""Multi-loss balancing (Kontras et al., BMVC 2024, arXiv 2405.07930)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_range

from .base import CoefficientUpdate, State, each_finite, mean_of_others
from .roles import Coefficients

_SMALLEST = 1e-8  # lower bound for confidences


@dataclass(frozen=True)
class MLB(Coefficients):
    """Slows down the modalities that are ahead and speeds up those that are behind, within bounds.

    `s_i` is the mean confidence of modality i's classifier in the true class, `r_i = mean_{j≠i} s_j / s_i`. Encoder i's
    gradient is multiplied by `k_i = 1 + (β_i − 1) tanh(α (r_i − 1))` with `β_i = β_max` if `r_i > 1`, else 2, so
    that `1 − tanh(α) < k_i < β_max`. Equal confidences give 1. The paper adds the unimodal losses, as in
    `UnimodalLosses() + MLB()`; the coefficient then scales the sum of both gradients.

    Args:
        alpha: α `>= 0`; the authors' default.
        beta_max: largest coefficient β_max `>= 1`. The authors' default 2 is symmetric.

    Raises:
        ValueError: an argument outside its range.

    >>> MLB(1.0, beta_max=3.0).balance(torch.tensor([0.6, 0.3]), {}).coefficients  # 1 + tanh(−.5), 1 + 2 tanh(1)
    tensor([0.5379, 2.5232])
    """

    alpha: float = 0.8
    beta_max: float = 2.0
    score_kind: ClassVar[Literal["confidence"]] = "confidence"

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0.0)
        check_range("beta_max", self.beta_max, 1.0)

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Compute coefficients from this step's confidences only.

        A modality without a finite confidence gets 1, and the others are compared without it.
        """
        finite, scores = each_finite(scores), scores.clamp_min(_SMALLEST)
        behind = mean_of_others(scores, finite) / scores - 1  # [M], r_i − 1; NaN: nothing to compare
        room = torch.where(behind > 0, self.beta_max - 1, 1.0)
        coefficients = 1 + room * torch.tanh(self.alpha * behind)
        coefficients = coefficients.masked_fill(~(behind < torch.inf), 1)
        return CoefficientUpdate(coefficients, coefficients, state)
