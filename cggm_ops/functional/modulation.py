"""The public functions `batched_cosine`, `scale_` and `modulate_`.

The implementations check the tensors (csrc/check*.h, cggm_ops/checks), because that costs less there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops import direct, reference, schema
from cggm_ops.checks.types import UNCLEAR, check_types


def batched_cosine(fusion: Tensor, unimodal: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the cosines between one head gradient and M others; everything is read once.

    cos_m = ⟨f, u_m⟩ / (‖f‖ ‖u_m‖), or 0 if a norm is 0. Sums are in float64; NaN propagates. Twice
    differentiable in `fusion`: d cos_m / d f = (u_m/‖u_m‖ − cos_m f/‖f‖) / ‖f‖, or 0 if a norm is 0. In forward
    mode and under the transforms of `torch.func`, the reference serves. Nothing is mutated.

    Args:
        fusion: the gradient of the fusion's output layer, D elements in any shape; float32, bfloat16, float16
            or float64.
        unimodal: the gradients of the M unimodal classifiers' output layers: M tensors of D elements each, or
            one tensor [M, ...]; of the dtype and on the device of `fusion`. Constants for autograd.

    Returns:
        The cosines [M] in [-1, 1]: float64 for float64, float32 otherwise.

    Raises:
        ValueError: numbers of elements, dtypes or devices differ, or the dtype is not supported.
        RuntimeError: a tensor in `unimodal` requires grad while autograd records.

    Source:
        The cosines of the direction loss in Guo et al., Classifier-guided Gradient Modulation for Enhanced
        Multimodal Learning (NeurIPS 2024, arXiv 2411.01409), section "Direction"; the backward pass is
        their closed form.

    Example:
        >>> batched_cosine(torch.tensor([3.0, 4.0]), torch.tensor([[6.0, 8.0], [-4.0, 3.0], [0.0, 0.0]]))
        tensor([1., 0., 0.])
    """
    rows = _rows(unimodal)
    if torch.compiler.is_compiling():
        return schema.serving(schema.batched_cosine, [fusion])(fusion, rows)[0]
    try:
        return _batched_cosine(fusion, rows)
    except UNCLEAR:
        check_types(schema.batched_cosine, (fusion, rows))
        raise


def _batched_cosine(fusion: Tensor, rows: Sequence[Tensor]) -> Tensor:
    call = schema.serving(schema.batched_cosine, [fusion])
    if torch.is_grad_enabled() and any(row.requires_grad for row in rows):
        raise RuntimeError(
            "unimodal holds a tensor that requires grad, but the cosines are differentiable only in fusion: pass "
            "unimodal.detach()"
        )
    if direct.is_transformed():  # plain operations have every derivative and batching rule
        return reference.batched_cosine(fusion, rows)[0]
    if torch.is_grad_enabled() and fusion.requires_grad:
        return call(fusion, rows)[0]
    # The autograd layer costs more than the kernel.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return call(fusion, rows)[0]


def scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    """Scale every gradient by its modality's coefficient in place; return the squared norms of the results.

    g_s ← c[owner_s] · g_s, n_m = Σ_{s: owner_s = m} ‖g_s‖². One pass over memory for any number of tensors,
    without synchronizing with the host. A coefficient of exactly 1 changes no bit.

    Args:
        grads: S tensors of any shapes and orders of strides, without gaps in memory; float32, bfloat16, float16
            or float64, also mixed; mutated. Products are in float32 (float64 for float64) and rounded once.
        owner: the modality of each tensor, in [0, M), or -1 to leave it unscaled.
        coefficients: [M], float32 or float64, any finite values, on the device of `grads`.

    Returns:
        The squared norms after scaling, [M + 1] in float64: one per modality, and last that of the tensors with
        owner -1. The number of threads changes no bit.

    Raises:
        ValueError: an owner out of range, a tensor given twice, shared memory, gaps in memory, an unsupported
            dtype or another device; nothing has been changed then.
        RuntimeError: a tensor in `grads` requires grad while autograd records.

    Source:
        The magnitude rule ∇θ_m ← ρ B_m ∇θ_m of Guo et al. (NeurIPS 2024, arXiv 2411.01409), with the
        coefficients given.

    Example:
        >>> grads = [torch.tensor([3.0, 4.0]), torch.tensor([1.0]), torch.tensor([2.0])]
        >>> scale_(grads, [0, 1, -1], torch.tensor([2.0, 0.5]))
        tensor([100.0000,   0.2500,   4.0000], dtype=torch.float64)
        >>> grads
        [tensor([6., 8.]), tensor([0.5000]), tensor([2.])]
    """
    call = direct.function("scale_")
    if call is not None and getattr(coefficients, "is_cpu", False):
        sq_norms = torch.empty(coefficients.numel() + 1, dtype=torch.float64)  # [M + 1]
        if call(grads, owner, coefficients, sq_norms):
            torch.autograd.graph.increment_version(grads)
            return sq_norms
    return schema.mutate(schema.scale_, "grads", grads, owner, coefficients)


def modulate_(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Tensor | Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Do the work of `scale_` and `batched_cosine` in one pass, without autograd.

    g_s ← c[owner_s] · g_s, and cos_m = ⟨f, u_m⟩ / (‖f‖ ‖u_m‖). The head gradients may be among `grads` if their
    owner is -1, since they are only read then.

    Args:
        grads: S tensors as for `scale_`; mutated.
        owner: the modality of each tensor, in [0, M), or -1.
        coefficients: [M], float32 or float64, on the device of `grads`.
        fusion: D elements, as for `batched_cosine`.
        unimodal: M tensors of D elements, or one tensor [M, ...], as for `batched_cosine`.

    Returns:
        The cosines [M] as `batched_cosine` returns them, and the squared norms [M + 1] as `scale_` does.

    Raises:
        ValueError: as for `scale_` and `batched_cosine`, and if a head gradient shares memory with a tensor
            that is to be scaled; nothing has been changed then.
        RuntimeError: a tensor in `grads` requires grad while autograd records.

    Source:
        Both halves of Guo et al. (NeurIPS 2024, arXiv 2411.01409), with the coefficients given.

    Example:
        >>> grads = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
        >>> head = torch.tensor([1.0, 0.0])
        >>> cosines, sq_norms = modulate_(grads, [0, 1], torch.tensor([2.0, 1.0]), head, [head, -head])
        >>> cosines, sq_norms
        (tensor([ 1., -1.]), tensor([100.,   1.,   0.], dtype=torch.float64))
    """
    return schema.mutate(
        schema.modulate_, "grads", grads, owner, coefficients, _detached(fusion), _rows(unimodal)
    )


def _detached(fusion: Tensor) -> Tensor:
    return fusion.detach() if isinstance(fusion, Tensor) else fusion  # refused with the other arguments


def _rows(unimodal: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return unimodal.unbind(0) if isinstance(unimodal, Tensor) else unimodal
