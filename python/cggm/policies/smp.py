"""Sequential modality prioritization, a part of G²D (Rakib and Bagavathi, ICCV 2025, arXiv 2506.21514)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_whole

from .base import CoefficientUpdate, State, all_finite
from .roles import Coefficients


@dataclass(frozen=True, kw_only=True)
class SMP(Coefficients):
    """Trains the weakest modality first, then adds the next stronger one at each stage until all are trained.

    In stage k = 1, ..., M, the k modalities with the lowest scores get coefficient 1 and the others 0. The last stage
    never ends. The scores are mean confidences in the true class over the last finished epoch, or over the steps so far
    during the first epoch, so the order may change after each epoch. The paper uses the confidences of pretrained
    unimodal teachers; we use the unimodal classifiers. The paper's default is stages of equal length, half of the
    training each for two modalities.

    Args:
        stage_steps: optimizer steps per stage, a whole number `>= 1`.
        epoch_steps: optimizer steps per epoch, `len(loader)`, a whole number `>= 1`.

    Raises:
        ValueError: an argument outside its range.

    >>> policy = SMP(stage_steps=2, epoch_steps=1)
    >>> policy.balance(torch.tensor([0.6, 0.3]), policy.initial_state(torch.zeros(2))).coefficients
    tensor([0., 1.])
    """

    stage_steps: int
    epoch_steps: int
    score_kind: ClassVar[Literal["confidence"]] = "confidence"

    def __post_init__(self) -> None:
        for name in ("stage_steps", "epoch_steps"):
            check_whole(name, getattr(self, name), 1)

    def initial_state(self, scores: Tensor) -> State:
        """No step taken."""
        return {
            "sums": torch.zeros_like(scores),  # [M], sums of this epoch's scores
            "last": torch.zeros_like(scores),  # [M], the sums of the last finished epoch
            "steps": torch.zeros((), dtype=torch.float32, device=scores.device),
        }

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Coefficients 0 or 1. A batch with non-finite scores counts as a step without scores."""
        steps = state["steps"]
        sums = state["sums"] + torch.where(all_finite(scores), scores, torch.zeros_like(scores))
        compared = torch.where(steps < self.epoch_steps, sums, state["last"])  # [M]
        weaker = (compared < compared[:, None]).sum(1)  # [M], how many have a lower score
        stage = torch.div(steps, self.stage_steps, rounding_mode="floor")
        coefficients = (weaker <= stage).to(scores.dtype)
        done = (steps + 1) % self.epoch_steps == 0
        state = {
            "sums": torch.where(done, torch.zeros_like(sums), sums),
            "last": torch.where(done, sums, state["last"]),
            "steps": steps + 1,
        }
        return CoefficientUpdate(coefficients, coefficients, state)
