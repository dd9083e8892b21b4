"""Norm equalization: gives the gradients of both losses equal norms at an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cggm.arguments import check_flag

from .base import State
from .roles import Combiner

_SPREAD = 3.0  # largest trusted ratio of joint training's gradient norm to its running mean
_NOTHING = 1e-20  # smaller norms count as zero, because their squares underflow in float32


@dataclass(frozen=True, kw_only=True)
class NormEqualization(Combiner):
    """Adds the feature gradients of both losses at equal norms: `g = m (g_m / ‖g_m‖ + g_u / ‖g_u‖)`.

    `m = max(‖g_m‖, ‖g_u‖)`, with norms over the whole batch of features. There are no hyper-parameters. A zero gradient
    adds nothing. The rule is homogeneous, so it works under loss scaling. With gradient accumulation, each micro-batch
    is combined separately.

    The sum can be twice as long as the longer gradient alone. If the unimodal gradient is much larger, it is many times
    as long as joint training's gradient, and SGD diverges at a high learning rate. `bounded=True` limits the norm of
    the model's whole gradient, without the classifiers, to the norm `J` that joint training's gradient has at these
    weights. `J` itself is clamped between its running mean and three times that mean.

    Args:
        bounded: whether to bound SGD steps this way. Adam's steps never are: Adam divides by the gradient's scale.

    >>> NormEqualization().combine(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 6.0]))
    tensor([6., 6.])
    """

    bounded: bool = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_flag("bounded", self.bounded)

    def combine(self, multimodal: Tensor, unimodal: Tensor, weight: Tensor | None = None) -> Tensor:
        """`m (g_m / ‖g_m‖ + weight · g_u / ‖g_u‖)`, `weight` 1 by default; not finite if a gradient is not."""
        if multimodal.element_size() < 4:  # with loss scaling, squares overflow in half precision
            return self.combine(multimodal.float(), unimodal.float(), weight).to(multimodal.dtype)
        one, other = vector_norm(multimodal).clamp_min(_NOTHING), vector_norm(unimodal).clamp_min(_NOTHING)
        if weight is not None:
            unimodal = unimodal * weight
        return (multimodal / one).addcdiv_(unimodal, other).mul_(torch.maximum(one, other))

    def initial_state(self, scores: Tensor) -> State:
        """If `bounded`, the running mean of `J` and the number of steps, both 0."""
        if not self.bounded:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=scores.device)
        return {"mean": zero, "steps": zero.clone()}

    def limit(self, joint: Tensor, state: State) -> tuple[Tensor, State]:
        """`J`, clamped between its running mean and three times that; a non-finite `J` changes nothing."""
        mean, steps = state["mean"], state["steps"]
        largest = torch.where(steps > 0, _SPREAD * mean, joint)
        counted = mean + (torch.minimum(joint, largest) - mean) / (steps + 1)
        finite = torch.isfinite(joint)
        mean = torch.where(finite, counted, mean)
        return joint.clamp(mean, _SPREAD * mean), {"mean": mean, "steps": steps + finite}
