"""On-the-fly gradient modulation with generalization enhancement (Peng et al., CVPR 2022, arXiv 2203.15332)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_flag, check_range

from .base import CoefficientUpdate, ScaleTarget, ScoreSource, State, each_finite, mean_of_others
from .roles import Coefficients

_ROUNDING = 1e-6  # tolerance: equal scores must not count as ahead because of rounding


@dataclass(frozen=True)
class OGMGE(Coefficients):
    """Slows down the modalities that are ahead, and adds noise to the gradients to improve generalization.

    `S_i` is the mean confidence of modality i in the true class, `r_i = S_i / mean_{j≠i} S_j` the discrepancy ratio.
    Encoder i's gradient is multiplied by `1 − tanh(α r_i)` if `r_i > 1`, else by 1. (Section 3 of the paper covers two
    modalities; the mean over the others is our generalization.) Then Gaussian noise of standard deviation
    `std(g) + 1e-8` is added to each gradient tensor of the encoders; `std(g)` is taken before the coefficient. All
    parameters of the encoders take part; the released script changes only those of convolutions.

    The confidences come from the unimodal classifiers, for any kind of fusion. The released script instead splits a
    head on concatenated features; `split_head=True` does the same. The script modulates only between a first and a last
    epoch; set `optimizer.active` in the training loop for that.

    Args:
        alpha: α `>= 0`.
        noise: generalization enhancement; needs `apply="gradient"`.
        split_head: take the confidences from each modality's columns of the head instead of the unimodal classifiers;
            the features must be concatenated in the order of `encoders`.

    Raises:
        TypeError, ValueError: a negative α, a flag that is neither True nor False.

    >>> OGMGE(0.5).balance(torch.tensor([0.6, 0.3]), {}).coefficients            # 1 − tanh(0.5 · 2)
    tensor([0.2384, 1.0000])
    """

    alpha: float = 0.3
    _: KW_ONLY
    noise: bool = True  # type: ignore[misc]
    split_head: bool = False
    score_kind: ClassVar[Literal["confidence"]] = "confidence"

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0.0)
        check_flag("noise", self.noise)
        check_flag("split_head", self.split_head)

    @property
    def score_source(self) -> ScoreSource:  # type: ignore[override]
        """The split head or the unimodal classifiers."""
        return "head" if self.split_head else "classifiers"

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """`gradient` with noise; otherwise `feature` with SGD, and `update` with adaptive optimizers."""
        return ("gradient",) if self.noise else super().scale_targets(adaptive)

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Compute coefficients from this step's confidences only.

        A modality without a finite confidence gets 1, and the others are compared without it.
        """
        others = mean_of_others(scores, each_finite(scores))
        ratios = scores / others.clamp_min(torch.finfo(scores.dtype).tiny)  # [M], NaN: nothing to compare
        ahead = (ratios > 1 + _ROUNDING) & (ratios < torch.inf)
        coefficients = torch.where(ahead, 1 - torch.tanh(self.alpha * ratios), torch.ones_like(ratios))
        return CoefficientUpdate(coefficients, coefficients, state)
