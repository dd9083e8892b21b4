"""Norm equalisation: at an encoder's output, both losses' gradients count alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Place, Policy


def weighted_sum(one: Tensor, other: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`w_1 · one + w_2 · other` in at least float32, returned in the dtype of `one`.

    Args:
        one: any shape.
        other: the same shape.
        weights: two 0-dimensional tensors, which may exceed the range of half precision.
    """
    dtype = torch.promote_types(one.dtype, torch.float32)
    return (one.to(dtype) * weights[0] + other.to(dtype) * weights[1]).to(one.dtype)


def norm(gradient: Tensor) -> Tensor:
    """Euclidean norm, 0-dimensional, at least float32; squares neither overflow nor vanish in half precision."""
    return torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))


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
        norms = torch.stack([norm(multimodal), norm(unimodal)])  # [2]
        larger = norms.amax()
        # a zero gradient stays zero times any finite weight
        weights = larger / norms.clamp_min((larger * 1e-30).clamp_min(torch.finfo(norms.dtype).tiny))
        return weighted_sum(multimodal, unimodal, weights.unbind())
