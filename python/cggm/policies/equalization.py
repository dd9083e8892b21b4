"""Norm equalisation: at an encoder's output, both losses' gradients count alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Place, Policy

_NOTHING = 1e-20  # a smaller norm is rounding: the squares in it vanish in float32


def widened(gradient: Tensor) -> Tensor:
    """The gradient in at least float32, where its squares neither overflow nor vanish under loss scaling."""
    return gradient.float() if gradient.element_size() < 4 else gradient


def norm(gradient: Tensor) -> Tensor:
    """Euclidean norm, 0-dimensional, of what is `widened`."""
    return torch.linalg.vector_norm(gradient)


@dataclass(frozen=True, kw_only=True)
class NormEqualization(Policy):
    """Adds both losses' feature gradients at equal norms: `g = m (g_m / ‖g_m‖ + g_u / ‖g_u‖)`.

    `m = max(‖g_m‖, ‖g_u‖)`; norms over the whole batch of features. No hyper-parameter. A zero gradient counts as
    nothing. The rule is homogeneous, so loss scaling passes through; with gradient accumulation each
    micro-batch is a batch of its own.

    >>> NormEqualization().meet(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 6.0]))
    tensor([6., 6.])
    """

    places: ClassVar[tuple[Place, ...]] = ("junction",)
    detach_features: ClassVar[bool] = False

    def meet(self, multimodal: Tensor, unimodal: Tensor | None) -> Tensor:
        """`m (g_m / ‖g_m‖ + g_u / ‖g_u‖)`; not finite where one of the gradients is not."""
        if unimodal is None:
            return multimodal
        one, other = widened(multimodal), widened(unimodal)
        norms = norm(one).clamp_min(_NOTHING), norm(other).clamp_min(_NOTHING)
        combined = (one / norms[0]).addcdiv_(other, norms[1]).mul_(torch.maximum(*norms))
        return combined.to(multimodal.dtype)
