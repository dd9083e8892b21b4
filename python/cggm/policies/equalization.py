"""Norm equalization: both losses' gradients have equal weight at an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .base import State
from .roles import Combiner

_SPREAD = 3.0  # how far joint training's gradient may be above its mean so far and still be believed
_NOTHING = 1e-20  # a smaller norm counts as zero, as its squares become in float32


@dataclass(frozen=True, kw_only=True)
class NormEqualization(Combiner):
    """Adds both losses' feature gradients at equal norms: `g = m (g_m / ‖g_m‖ + g_u / ‖g_u‖)`.

    `m = max(‖g_m‖, ‖g_u‖)`, with norms over the whole batch of features. No hyper-parameter. A zero gradient adds
    nothing. The rule is homogeneous, so loss scaling passes through. With gradient accumulation each micro-batch is
    combined by itself.

    Two gradients at the larger of their norms make the encoder's step up to twice as long as the longer one alone, and
    many times as long as joint training's where the unimodal gradient is the larger: at a high learning rate SGD then
    diverges. With `bounded=True` the model's whole gradient, classifiers left out, gets no longer than the norm `J` of
    joint training's own gradient at these weights, where `J` is held between its mean so far and three times that.

    Args:
        bounded: whether steps of SGD are bounded so. Adam's are not: it divides by the gradient's size anyway.

    >>> NormEqualization().combine(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 6.0]))
    tensor([6., 6.])
    """

    bounded: bool = False  # type: ignore[misc]

    def combine(self, multimodal: Tensor, unimodal: Tensor, weight: Tensor | None = None) -> Tensor:
        """`m (g_m / ‖g_m‖ + weight · g_u / ‖g_u‖)`, `weight` 1 by default; not finite where a gradient is not."""
        if multimodal.element_size() < 4:  # in half precision squares do not fit under loss scaling
            return self.combine(multimodal.float(), unimodal.float(), weight).to(multimodal.dtype)
        one, other = vector_norm(multimodal).clamp_min(_NOTHING), vector_norm(unimodal).clamp_min(_NOTHING)
        if weight is not None:
            unimodal = unimodal * weight
        return (multimodal / one).addcdiv_(unimodal, other).mul_(torch.maximum(one, other))

    def initial_state(self, scores: Tensor) -> State:
        """Where `bounded`, the mean of `J` so far and the number of steps: 0."""
        if not self.bounded:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=scores.device)
        return {"mean": zero, "steps": zero.clone()}

    def limit(self, joint: Tensor, state: State) -> tuple[Tensor, State]:
        """`J`, held between its mean so far and three times that; a `J` that is not finite changes nothing."""
        mean, steps = state["mean"], state["steps"]
        largest = torch.where(steps > 0, _SPREAD * mean, joint)
        counted = mean + (torch.minimum(joint, largest) - mean) / (steps + 1)
        finite = torch.isfinite(joint)
        mean = torch.where(finite, counted, mean)
        return joint.clamp(mean, _SPREAD * mean), {"mean": mean, "steps": steps + finite}
