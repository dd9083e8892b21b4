"""Norm equalization: both losses' gradients have equal weight at an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .base import Combiner

_NOTHING = 1e-20  # a smaller norm counts as zero, as its squares become in float32


@dataclass(frozen=True, kw_only=True)
class NormEqualization(Combiner):
    """Adds both losses' feature gradients at equal norms: `g = m (g_m / ‖g_m‖ + g_u / ‖g_u‖)`.

    `m = max(‖g_m‖, ‖g_u‖)`, with norms over the whole batch of features. No hyper-parameter. A zero gradient adds
    nothing. The rule is homogeneous, so loss scaling passes through. With gradient accumulation each micro-batch is
    combined by itself.

    Args:
        bounded: before an optimizer that is linear in the gradient (SGD), shorten the model's whole gradient to the
            length that joint training's own gradient has at these weights: the encoders' parts at the share
            `‖g_m‖ / ‖g‖`, the rest as it is. Adam divides by the gradient's length anyway, and nothing happens there.

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
