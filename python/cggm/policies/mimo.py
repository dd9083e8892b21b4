"""Multimodal learning by multi-objective optimization (Fernando et al., 2025, arXiv 2511.06686)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cggm.arguments import check_range

from .base import CoefficientUpdate, ScaleTarget, State, each_finite
from .roles import Coefficients


@dataclass(frozen=True)
class MIMO(Coefficients):
    """Gives most of the unimodal weight to the modality that is farthest from its best unimodal loss.

    `g_i = g_multimodal + λ σ_i g_unimodal` with `σ = softmax((f − f*) / μ)`: `f_i` is modality i's unimodal loss on
    the batch. `f*_i` is the loss it reaches when trained alone or, if that is unknown, its best batch loss so far. A
    smaller μ comes closer to training only the worst modality (the minimax problem of the paper). The rule needs a
    combiner that takes a weight: `UnimodalLosses() + MIMO()`. The classifiers themselves train on their losses at
    weight 1.

    Args:
        lam: λ `>= 0`, factor of the unimodal gradients; the paper takes 10 or more.
        mu: μ `>= 1e-6`, temperature of the softmax.
        optimum: `f*_i` for each modality, in the order of `encoders`; None for the best so far.

    Raises:
        ValueError: an argument is outside its range; at the first step, `optimum` does not have one entry per modality.

    >>> policy = MIMO(lam=10.0, mu=1.0, optimum=(0.5, 0.2))
    >>> policy.balance(torch.tensor([-1.0, -0.7]), {}).unimodal_weights                 # both lag by .5
    tensor([5., 5.])
    """

    lam: float = 10.0
    mu: float = 0.1
    _: KW_ONLY
    optimum: tuple[float, ...] | None = None  # type: ignore[misc]
    weighs_unimodal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("lam", self.lam, 0.0)
        check_range("mu", self.mu, 1e-6)
        if self.optimum is not None and not (isinstance(self.optimum, tuple) and self.optimum):
            raise ValueError(
                f"optimum must be a tuple of one loss per modality, or None, got {self.optimum!r}"
            )
        for index, value in enumerate(self.optimum or ()):
            check_range(f"optimum[{index}]", value, 0.0)

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """Only `feature`, where the unimodal gradient is weighted; the coefficients themselves are 1."""
        return ("feature",)

    def initial_state(self, scores: Tensor) -> State:
        """The best losses so far: infinite, so that no modality lags in the first step."""
        return {} if self.optimum is not None else {"best": torch.full_like(scores, torch.inf)}

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Coefficients 1 and unimodal weights from the losses; a loss that is not finite counts as no lag."""
        losses, finite = -scores, each_finite(scores)
        if self.optimum is None:
            best = torch.where(finite, torch.minimum(losses, state["best"]), state["best"])
            state = {"best": best}
        else:
            if len(self.optimum) != scores.numel():
                raise ValueError(
                    f"optimum must have one loss per modality, {scores.numel()} here, got {self.optimum!r}"
                )
            best = torch.cat([torch.full_like(scores[:1], value) for value in self.optimum])
        lag = torch.where(finite, losses - best, torch.zeros_like(scores))  # [M]
        ones = torch.ones_like(scores)
        return CoefficientUpdate(ones, ones, state, self.lam * torch.softmax(lag / self.mu, 0))
