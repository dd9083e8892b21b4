"""Checks of the arguments of `scale_`, `batched_cosine` and `modulate_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops.checks.tensors import (
    Range,
    check_dtype,
    check_factors,
    check_not_written,
    check_owner,
    check_same_device,
    check_written,
)

NOT_SCALED = "give that one the owner -1 or pass a copy"


def check_scale(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> list[Range]:
    """Refuse gradients, owners or coefficients that `scale_` cannot take; return the memory that changes, sorted."""
    check_factors(coefficients, 1, "coefficients")
    check_owner(owner, len(grads), "grads", coefficients.numel(), "coefficients")
    for index, grad in enumerate(grads):
        check_dtype(grad, "grads")
        check_same_device(grad, coefficients, f"grads[{index}]", "coefficients")
    written = check_written({"grads": grads})
    read = {f"grads[{index}]" for index, modality in enumerate(owner) if modality < 0}
    scaled = [memory for memory in written if memory[2] not in read]
    check_not_written(coefficients, "coefficients", scaled, NOT_SCALED)
    return scaled


def check_head(fusion: Tensor, unimodal: Sequence[Tensor]) -> None:
    """Refuse head gradients that `batched_cosine` cannot take."""
    check_dtype(fusion, "fusion")
    for index, tensor in enumerate(unimodal):
        if tensor.numel() != fusion.numel():
            raise ValueError(
                f"unimodal[{index}] must have as many elements as fusion ({fusion.numel()}), found {tensor.numel()}: "
                "both are gradients of output layers of one shape"
            )
        if tensor.dtype != fusion.dtype:
            raise ValueError(
                f"unimodal[{index}] must have the dtype of fusion ({fusion.dtype}), found {tensor.dtype}"
            )
        check_same_device(tensor, fusion, "unimodal", "fusion")


def check_backward(grad: Tensor, products: Tensor, fusion: Tensor, unimodal: Sequence[Tensor]) -> None:
    """Refuse what `batched_cosine_backward` cannot take."""
    check_head(fusion, unimodal)
    check_factors(grad, 1, "grad")
    check_factors(products, 1, "products")
    wanted, found = (len(unimodal), 2 * len(unimodal) + 1), (grad.numel(), products.numel())
    if found != wanted or products.dtype != torch.float64:
        raise ValueError(
            f"grad must have one number per tensor in unimodal ({wanted[0]}) and products twice as many and one, in "
            f"float64, found {found[0]} and {found[1]}"
        )
    for tensor in (grad, products):
        check_same_device(tensor, fusion, "grad and products", "fusion")


def check_modulation(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Sequence[Tensor],
) -> None:
    """Refuse what `modulate_` cannot take."""
    written = check_scale(grads, owner, coefficients)
    if len(unimodal) != coefficients.numel():
        raise ValueError(
            f"unimodal must hold one tensor per coefficient ({coefficients.numel()}), found {len(unimodal)}"
        )
    check_same_device(fusion, coefficients, "fusion", "coefficients")
    check_not_written(fusion, "fusion", written, NOT_SCALED)
    for index, tensor in enumerate(unimodal):
        check_not_written(tensor, f"unimodal[{index}]", written, NOT_SCALED)
    check_head(fusion, unimodal)
