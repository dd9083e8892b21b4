"""The definitions of `batched_cosine` with its backward, `scale_` and `modulate_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops.checks.modulation import check_backward, check_head, check_modulation, check_scale
from cggm_ops.reference.tensors import stack_rows, widen


def batched_cosine(fusion: Tensor, unimodal: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cosines [M], and dots [M], squared norms [M] and the squared norm of fusion as one tensor [2M + 1]."""
    check_head(fusion, unimodal)
    products = head_products(fusion, unimodal)
    modalities = len(unimodal)
    dots, sq_unimodal, sq_fusion = products.split([modalities, modalities, 1])
    cosines = dots * _inverse_norm(sq_fusion) * _inverse_norm(sq_unimodal)
    return cosines.clamp(-1, 1).to(cosine_dtype(fusion)), products


def batched_cosine_backward(
    grad: Tensor, products: Tensor, fusion: Tensor, unimodal: Sequence[Tensor]
) -> Tensor:
    """Return the gradient with respect to fusion: Σ grad_m (u_m/‖u_m‖ − cos_m f/‖f‖) / ‖f‖.

    The operations are differentiable, so that a second derivative exists if `products` carries a gradient itself.
    """
    check_backward(grad, products, fusion, unimodal)
    modalities = len(unimodal)
    dots, sq_unimodal, sq_fusion = products.split([modalities, modalities, 1])
    weights = grad.double() * _inverse_norm(sq_fusion) * _inverse_norm(sq_unimodal)  # [M]
    along_fusion = (weights * dots).sum() * _inverse_norm(sq_fusion).square()
    result = weights @ stack_rows(fusion, unimodal) - along_fusion * fusion.double().reshape(-1)  # [D]
    return result.reshape(fusion.shape).to(fusion.dtype)


def scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    """Multiply every gradient by its modality's coefficient; return the new squared norms [M + 1]."""
    check_scale(grads, owner, coefficients)
    return _scale_(grads, owner, coefficients)


def modulate_(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the cosines [M] of the head gradients and do what `scale_` does."""
    check_modulation(grads, owner, coefficients, fusion, unimodal)
    cosines, _ = batched_cosine(fusion, unimodal)
    return cosines, _scale_(grads, owner, coefficients)


def head_products(fusion: Tensor, unimodal: Sequence[Tensor]) -> Tensor:
    """Return (dots [M], squared norms [M], squared norm of fusion) as one float64 tensor [2M + 1]."""
    flat = fusion.double().reshape(-1)  # [D]
    rows = stack_rows(fusion, unimodal)  # [M, D]
    return torch.cat([rows @ flat, rows.square().sum(1), flat.square().sum(0, keepdim=True)])


def cosine_dtype(fusion: Tensor) -> torch.dtype:
    """Return the dtype of the cosines: float64 for float64, float32 otherwise."""
    return torch.float64 if fusion.dtype == torch.float64 else torch.float32


def _scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    sq_norms = coefficients.new_zeros(coefficients.numel() + 1, dtype=torch.float64)  # [M + 1]
    for grad, modality in zip(grads, owner, strict=True):
        if modality >= 0:
            wide = widen(grad)
            grad.copy_(wide * coefficients[modality].to(wide.dtype))
        sq_norms[modality] += grad.double().square().sum()  # the owner -1 is the last entry
    return sq_norms


def _inverse_norm(sq_norm: Tensor) -> Tensor:
    """Return 1/norm, or 0 if the norm is 0; then the derivative is 0, too."""
    is_zero = sq_norm == 0
    return torch.where(is_zero, 1.0, sq_norm).rsqrt().masked_fill(is_zero, 0.0)
