"""The public functions `batched_cosine`, `scale_` and `modulate_`.

The implementation checks the tensors (csrc/check*.h, cggm_ops/checks): that costs less there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops import schema


def batched_cosine(fusion: Tensor, unimodal: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the cosines between one head gradient and M others, all in one read of everything.

    cos_m = ⟨f, u_m⟩ / (‖f‖ ‖u_m‖), and 0 where a norm is 0. Sums are taken in float64; NaN propagates.
    Differentiable in `fusion`, twice: d cos_m / d f = (u_m/‖u_m‖ − cos_m f/‖f‖) / ‖f‖, and 0 where a norm is
    0. Nothing is mutated.

    Args:
        fusion: the gradient of the fusion's output layer, D elements in any shape; float32, bfloat16, float16
            or float64.
        unimodal: the gradients of the M unimodal classifiers' output layers: M tensors of D elements each, or
            one tensor [M, ...]; dtype and device of `fusion`. A constant for autograd.

    Returns:
        The cosines [M] in [-1, 1]: float64 for float64, float32 for all others.

    Raises:
        ValueError: numbers of elements, dtypes or devices differ, or the dtype is not supported.
        RuntimeError: a tensor in `unimodal` requires grad while autograd records.

    Source:
        The cosines of the direction loss in Guo et al., Classifier-guided Gradient Modulation for Enhanced
        Multimodal Learning (NeurIPS 2024, arXiv 2411.01409), section "Direction"; the backward is its closed
        form.

    Example:
        >>> batched_cosine(torch.tensor([3.0, 4.0]), torch.tensor([[6.0, 8.0], [-4.0, 3.0], [0.0, 0.0]]))
        tensor([1., 0., 0.])
    """
    rows = _rows(unimodal)
    call = schema.serving(schema.batched_cosine, [fusion])
    if torch.compiler.is_compiling():
        return call(fusion, rows)[0]
    if torch.is_grad_enabled():
        if any(row.requires_grad for row in rows):
            raise RuntimeError(
                "unimodal holds a tensor that requires grad, but the cosines are differentiable in fusion alone: pass "
                "unimodal.detach()"
            )
        if fusion.requires_grad:
            return call(fusion, rows)[0]
    # The autograd layer costs more than the kernel.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return call(fusion, rows)[0]


def scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    """Scale every gradient by its modality's coefficient, in place, and return the squared norms afterwards.

    g_s ← c[owner_s] · g_s, n_m = Σ_{s: owner_s = m} ‖g_s‖². One pass over memory for any number of tensors,
    no synchronisation with the host. A coefficient of exactly 1 leaves the bits as they are.

    Args:
        grads: S tensors of any shapes without gaps in memory (any order of strides); float32, bfloat16,
            float16 or float64, mixed at will; mutated. Products are taken in float32 (float64 for float64)
            and rounded once.
        owner: the modality of each tensor, in [0, M), or -1 for "leave unscaled".
        coefficients: [M], float32 or float64, any finite values, on the device of `grads`.

    Returns:
        The squared norms after scaling, [M + 1] in float64: one per modality, and last the sum over the
        tensors with owner -1. The same bits at any number of threads.

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
    return schema.mutate(schema.scale_, "grads", grads, owner, coefficients)


def modulate_(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Tensor | Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Do what `scale_` and `batched_cosine` do, in one launch, without autograd.

    g_s ← c[owner_s] · g_s, and cos_m = ⟨f, u_m⟩ / (‖f‖ ‖u_m‖). The head gradients may be among `grads` where
    their owner is -1, since they are then only read.

    Args:
        grads: S tensors as for `scale_`; mutated.
        owner: the modality of each tensor, in [0, M), or -1.
        coefficients: [M], float32 or float64, on the device of `grads`.
        fusion: D elements, as for `batched_cosine`.
        unimodal: M tensors of D elements, or one tensor [M, ...], as for `batched_cosine`.

    Returns:
        The cosines [M], and the squared norms after scaling [M + 1] in float64, as the two functions return
        them.

    Raises:
        ValueError: as for `scale_` and `batched_cosine`, and where a head gradient shares memory with a
            tensor that is to be scaled; nothing has been changed then.
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
        schema.modulate_, "grads", grads, owner, coefficients, fusion.detach(), _rows(unimodal)
    )


def _rows(unimodal: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return unimodal.unbind(0) if isinstance(unimodal, Tensor) else unimodal
