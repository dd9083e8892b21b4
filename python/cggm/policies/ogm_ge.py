"""On-the-fly gradient modulation with generalization enhancement (Peng et al., CVPR 2022, arXiv 2203.15332)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .base import CoefficientUpdate, ScaleTarget, ScoreSource, State, all_finite, check_range
from .roles import Coefficients

_ROUNDING = 1e-6  # equal scores must not count as ahead of each other


@dataclass(frozen=True)
class OGMGE(Coefficients):
    """Slows the modalities that are ahead, and adds noise to the gradients to keep up generalization.

    `S_i` is the mean confidence of modality i in the truth, `r_i = S_i / mean_{j≠i} S_j` the discrepancy ratio.
    Encoder i's gradient is multiplied by `1 − tanh(α r_i)` where `r_i > 1`, else by 1 (section 3 of the paper, of two
    modalities; the mean of the others is our generalization). Then Gaussian noise of standard deviation
    `std(g) + 1e-8` is added to each of the encoders' gradient tensors, `std(g)` taken before the coefficient. All
    parameters of the encoders take part; the released script touches those of convolutions only.

    The confidences come from the unimodal classifiers, whatever the fusion is. The released script has a head that gets
    the concatenated features, and splits that head instead: `split_head=True` does the same. The script modulates
    from a first to a last epoch: set `optimizer.active` from the training loop.

    Args:
        alpha: α `>= 0`.
        noise: generalization enhancement; needs `apply="gradient"`.
        split_head: confidences from the head's columns of each modality, features concatenated in the order of
            `encoders`, instead of from the unimodal classifiers.

    Raises:
        ValueError: a negative α.

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

    @property
    def score_source(self) -> ScoreSource:  # type: ignore[override]
        """The split head or the unimodal classifiers."""
        return "head" if self.split_head else "classifiers"

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """With noise on the gradients; else `feature` before SGD, and `update` before Adam and kin."""
        return ("gradient",) if self.noise else super().scale_targets(adaptive)

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Coefficients from this step's confidences alone; 1 where one is not finite."""
        others = (scores.sum() - scores) / (scores.numel() - 1)
        ratios = scores / others.clamp_min(torch.finfo(scores.dtype).tiny)  # [M]
        ahead = (ratios > 1 + _ROUNDING) & all_finite(scores)
        coefficients = torch.where(ahead, 1 - torch.tanh(self.alpha * ratios), torch.ones_like(ratios))
        return CoefficientUpdate(coefficients, coefficients, state)
