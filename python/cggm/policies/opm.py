"""On-the-fly prediction modulation (Wei et al., TPAMI 2024, arXiv 2410.11582)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_range

from .base import State, all_finite
from .roles import Dropout

_ROUNDING = 1e-6  # tolerance: equal scores must not count as ahead because of rounding
_SMALLEST = 1e-8  # lower bound for confidences


@dataclass(frozen=True)
class OPM(Dropout):
    """Zeroes the leading modality's features before the fusion; the farther it is ahead, the more often.

    `s_i` is the mean confidence of modality i's classifier in the true class, `ρ_i = mean_{j≠i} s_i / s_j`. A sample
    loses modality i with probability `q_i = q (1 + λ tanh(ρ_i − 1))` if `ρ_i > 1`, else 0. The rates of a step come
    from the scores of the previous step; the first step drops nothing.

    A sample loses at most one modality. With two modalities only one can lead, and this is the paper's rule. With more,
    the paper draws each modality independently and skips samples that lose all of them; here the rates are scaled down
    if they add up to more than 1. The authors' script takes its confidences from the split head, applies dropout to 70%
    of the batches after five epochs (see `optimizer.active`), and divides all features by their expected kept share.

    Args:
        q: base rate in `[0, 1]`; the authors' default.
        lam: λ `>= 0`; the authors' default.

    Raises:
        ValueError: an argument outside its range.

    >>> OPM(0.5, 0.5).update(torch.tensor([0.6, 0.3]), {"rates": torch.zeros(2)})["rates"]  # .5 (1 + .5 tanh(1))
    tensor([0.6904, 0.0000])
    """

    q: float = 0.5
    lam: float = 0.5
    adaptive: ClassVar[bool] = True
    score_kind: ClassVar[Literal["confidence"]] = "confidence"

    def __post_init__(self) -> None:
        check_range("q", self.q, 0.0, 1.0)
        check_range("lam", self.lam, 0.0)

    def rates(self, modalities: int) -> tuple[float, ...]:
        """The rates of the first step: 0 for each of the M modalities."""
        return (0.0,) * modalities

    def update(self, scores: Tensor, state: State) -> State:
        """Compute rates from this step's confidences only; keep the previous rates if a confidence is not finite.

        All rates are kept then: a new rate beside an old one could add up to more than 1.
        """
        finite, scores = all_finite(scores), scores.float().clamp_min(_SMALLEST)
        inverse = 1 / scores
        lead = scores * (inverse.sum() - inverse) / (scores.numel() - 1) - 1  # [M], ρ_i − 1
        rates = (self.q * (1 + self.lam * torch.tanh(lead))).clamp_max(1)
        rates = torch.where(lead > _ROUNDING, rates, torch.zeros_like(rates))
        rates = rates / rates.sum().clamp_min(1)
        return {"rates": torch.where(finite, rates, state["rates"])}
