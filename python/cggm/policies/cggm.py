"""Classifier-guided gradient modulation (Guo et al., NeurIPS 2024, arXiv 2411.01409)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_flag, check_range, check_word
from cggm.deprecated import renamed_argument
from cggm.tasks.calls import TaskCalls

from .base import CoefficientUpdate, ScaleTarget, State, each_finite
from .roles import Coefficients

if TYPE_CHECKING:
    from cggm.tasks import Task

_SMALLEST_GAIN = 1e-6  # below this sum of gains, rounding would decide which modality is ahead


def paper_balance(gains: Tensor) -> Tensor:
    """The paper's balancing term `B_i = (Σ_k Δ_k − Δ_i) / Σ_k Δ_k` (section 3.2), with `1e-8` added to the sum.

    Args:
        gains: `[M]`, each modality's gain in score since the last step, any sign. Use float64, as the released script
            does: when gains cancel, the rounding error of float32 exceeds `1e-8`.

    The terms add up to `M − 1`. The denominator of batch scores can cross zero, so a term can be negative or in the
    millions. This is the published form, kept for reproduction.

    >>> paper_balance(torch.tensor([0.3, 0.1]))
    tensor([0.2500, 0.7500])
    """
    total = gains.sum() + 1e-8
    return (total - gains) / total  # [M]


def stable_balance(gains: Tensor) -> Tensor:
    """The balancing term on the positive parts of the gains, rescaled to mean 1.

    `B_i = M/(M−1) · (Σ Δ⁺ − Δ⁺_i) / Σ Δ⁺`, or 1 if `Σ Δ⁺ ≤ 1e-6`. It lies in `[0, M/(M−1)]` by construction.

    Args:
        gains: `[M]`, each modality's gain in score since the last step, any sign.

    >>> stable_balance(torch.tensor([0.3, 0.1]))
    tensor([0.5000, 1.5000])
    >>> stable_balance(torch.tensor([-0.3, 0.0]))
    tensor([1., 1.])
    """
    modalities = gains.numel()
    gains = gains.clamp_min(0)
    total = gains.sum()
    share = gains.div_(total)  # [M], adds up to 1
    largest = modalities / (modalities - 1)
    return torch.rsub(share, largest, alpha=largest).masked_fill_(total <= _SMALLEST_GAIN, 1.0)


@renamed_argument("score", "score_kind")
@dataclass(frozen=True, kw_only=True)
class CGGM(Coefficients):
    """Slows down the modality that gains most and turns the fusion towards the modality that gains least.

    Each step, the unimodal classifiers' scores `ε_i` are smoothed; encoder `i` is updated with `ρ · B_i` times its
    gradient, where `B_i` comes from the gains `Δ_i = ε_i(t) − ε_i(t−1)` (`stable_balance`) and is smoothed too.
    The direction term of strength `λ` acts on the head's weight alone.

    Args:
        rho: overall factor ρ of the coefficients, `>= 0`.
        lam: strength λ of the direction term, `>= 0`; 0 switches it off.
        direction: `"rotation"` turns the head's gradient towards the unimodal ones in closed form;
            `"gradient"` is the paper's `L_gm`, differentiated through the head's gradient (double backward);
            `"weights"` is the released script's cosine of weights, acting one step late; `"none"`. The paper
            differentiates its term in the same step. Of the released scripts, the one for three modalities
            differentiates the last step's cosine of weights through the head's weight, as `"weights"` does, and the
            image-text one adds that value as a constant, which has no gradient (issue 6 of the authors' repository).
        score_kind: `"loss"` compares negative unimodal losses, `"metric"` the task's score (accuracy, ...).
        smoothing: weight of the past in the moving averages of scores and coefficients, in `[0, 1)`.
        stable: False uses the paper's unbounded balancing term on raw batch scores.

    Raises:
        TypeError, ValueError: an argument outside its range.

    `CGGM.paper` and `CGGM.released` are the published forms.

    >>> policy = CGGM()
    >>> state = policy.initial_state(torch.zeros(2))
    >>> for scores in ([-2.3, -2.3], [-1.3, -2.2]):                # the first modality gains ten times as much
    ...     update = policy.balance(torch.tensor(scores), state)
    ...     state = update.state
    >>> update.coefficients
    tensor([0.9182, 1.0818])
    """

    rho: float = 1.0
    lam: float = 0.0
    direction: Literal["rotation", "gradient", "weights", "none"] = "rotation"  # type: ignore[assignment]
    score_kind: Literal["loss", "metric"] = "loss"  # type: ignore[assignment]
    smoothing: float = 0.9
    stable: bool = True
    compares_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("rho", self.rho, 0.0)
        check_range("lam", self.lam, 0.0)
        check_range("smoothing", self.smoothing, 0.0, 0.999999)
        check_flag("stable", self.stable)
        check_word("direction", self.direction, ("rotation", "gradient", "weights", "none"))
        check_word("score_kind", self.score_kind, ("loss", "metric"))

    @classmethod
    def paper(cls, rho: float = 1.3, lam: float = 0.2) -> CGGM:
        """The paper's formulas: raw batch metrics, unbounded `B_i`, `L_gm` on gradients (equations 5 to 10).

        Needs gradient clipping (the papers' experiments clip at 0.8): `B_i` is unbounded.
        """
        return cls(rho=rho, lam=lam, direction="gradient", score_kind="metric", smoothing=0.0, stable=False)

    @classmethod
    def released(cls, rho: float = 1.3, lam: float = 0.2) -> CGGM:
        """The released script's arithmetic: like `paper`, but with the cosine of weights, one step late.

        Needs gradient clipping (the script clips at 0.8): `B_i` is unbounded.
        """
        return cls(rho=rho, lam=lam, direction="weights", score_kind="metric", smoothing=0.0, stable=False)

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """`gradient` for the published forms; otherwise `feature` with SGD, and `update` with adaptive optimizers.

        An optimizer such as Adam divides by the gradient's own scale, which cancels a coefficient on the gradient.
        """
        return super().scale_targets(adaptive) if self.stable else ("gradient", "feature", "update")

    def measure(self, task: Task, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The task's scores `[M]`, in float64 for the published forms."""
        if self.stable:
            return super().measure(task, outputs, target)
        return torch.stack([score.double() for score in TaskCalls.of(task).scores(outputs, target)])

    def initial_state(self, scores: Tensor) -> State:
        """Scores 0, balancing terms 1, no step taken."""
        return {
            "scores": torch.zeros_like(scores, dtype=None if self.stable else torch.float64),  # [M], smoothed
            "weights": torch.ones_like(scores, dtype=torch.float32),  # [M], smoothed balancing terms
            "steps": torch.zeros((), dtype=torch.float32, device=scores.device),
        }

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Compute balancing terms from the gains since the last committed step.

        A modality without a finite score in this step has no gain, and keeps its state and its coefficient.
        """
        old, finite = state["scores"], each_finite(scores)
        if self.stable:
            old = old.masked_fill(state["steps"] == 0, torch.nan)  # NaN: never scored
            known = torch.where(finite, scores, old)
            before = torch.where(old == old, old, known)  # the gain is 0 in the first step
            smoothed = torch.lerp(known, before, self.smoothing)
            gains = (smoothed - before).nan_to_num_(0.0)
            weights = torch.lerp(stable_balance(gains), state["weights"], self.smoothing)
        else:
            smoothed = torch.where(finite, scores.double(), old)
            weights = paper_balance(smoothed - old).float()
        weights = torch.where(finite, weights, state["weights"])
        state = {"scores": smoothed, "weights": weights, "steps": state["steps"] + finite.any()}
        return CoefficientUpdate(weights if self.rho == 1 else self.rho * weights, weights, state)
