"""scale_, batched_cosine with its backward, and modulate_ in Triton.

Sums take two launches and no atomics: the first writes one partial sum per chunk, the second adds them up in a fixed
order. One launch cannot do both, because Triton has no barrier over the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cggm_ops import reference
from cggm_ops.checks.modulation import check_backward, check_head, check_modulation, check_scale
from cggm_ops.triton import tables
from cggm_ops.triton.tables import CHUNK, ELEMENTS, OPTIONS, SUM_BLOCK, read, sum_columns, write


@triton.jit
def scale_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, 1 + COLUMNS]
    coefficients,  # noqa: ANN001 [M]
    stride,  # noqa: ANN001
    partials,  # noqa: ANN001 [chunks]
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """x ← c·x over one chunk, and Σ x² of what was stored."""
    row = table + tl.program_id(0) * 6
    address, count, is_fast = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    modality, place = tl.load(row + 4), tl.load(row + 5)
    coefficient = tl.load(coefficients + modality * stride, mask=modality >= 0, other=1.0).to(tl.float32)
    offsets = tl.arange(0, CHUNK)
    values = read(address, offsets, count, is_fast, ELEMENT)
    # A coefficient of one leaves every bit as it is, those of a NaN included: the tensor is only read.
    if coefficient != 1.0:
        values = (values.to(tl.float32) * coefficient).to(ELEMENT)
        write(address, offsets, count, is_fast, values, ELEMENT)
    # An infinite coefficient turns the padding into NaN, which must not enter the sum.
    wide = tl.where(offsets < count, values.to(tl.float64), 0.0)
    tl.store(partials + place, tl.sum(wide * wide))


@triton.jit
def sum_kernel(partials, begins, sums, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """sums[i] = Σ partials[begins[i] : begins[i + 1]]."""
    index = tl.program_id(0)
    begin = tl.load(begins + index)
    tl.store(sums + index, sum_columns(partials + begin, tl.load(begins + index + 1) - begin, BLOCK))


@triton.jit
def products_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, 1 + M + COLUMNS]: fusion, then the unimodal gradients
    partials,  # noqa: ANN001 [2M + 1, chunks]
    MODALITIES: tl.constexpr,
    chunks,  # noqa: ANN001
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Dot products and squared norms of one chunk of all head gradients."""
    chunk = tl.program_id(0)
    row = table + chunk * (MODALITIES + 6)
    count, is_fast = tl.load(row + MODALITIES + 1), tl.load(row + MODALITIES + 2)
    offsets = tl.arange(0, CHUNK)
    fusion = read(tl.load(row), offsets, count, is_fast, ELEMENT).to(tl.float64)
    tl.store(partials + 2 * MODALITIES * chunks + chunk, tl.sum(fusion * fusion))
    for m in range(MODALITIES):
        values = read(tl.load(row + 1 + m), offsets, count, is_fast, ELEMENT).to(tl.float64)
        tl.store(partials + m * chunks + chunk, tl.sum(values * fusion))
        tl.store(partials + (MODALITIES + m) * chunks + chunk, tl.sum(values * values))


@triton.jit
def inverse_norm(square):  # noqa: ANN001, ANN201
    """1/√square, and 0 for 0."""
    is_zero = square == 0.0
    return tl.where(is_zero, 0.0, 1.0 / tl.sqrt(tl.where(is_zero, 1.0, square)))


@triton.jit
def cosines_kernel(  # noqa: ANN201
    partials,  # noqa: ANN001 [2M + 1, chunks]
    products,  # noqa: ANN001 [2M + 1]
    cosines,  # noqa: ANN001 [M]
    MODALITIES: tl.constexpr,
    chunks,  # noqa: ANN001
    BLOCK: tl.constexpr,
):
    """Add up the products of one modality and compute its cosine."""
    m = tl.program_id(0)
    sq_fusion = sum_columns(partials + 2 * MODALITIES * chunks, chunks, BLOCK)
    if m == 0:
        tl.store(products + 2 * MODALITIES, sq_fusion)
    if m < MODALITIES:
        dot = sum_columns(partials + m * chunks, chunks, BLOCK)
        square = sum_columns(partials + (MODALITIES + m) * chunks, chunks, BLOCK)
        tl.store(products + m, dot)
        tl.store(products + MODALITIES + m, square)
        value = dot * inverse_norm(sq_fusion) * inverse_norm(square)
        value = tl.where(value > 1.0, 1.0, tl.where(value < -1.0, -1.0, value))  # NaN stays NaN
        tl.store(cosines + m, value)


@triton.jit
def backward_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, 2 + M + COLUMNS]: the result, fusion, then the unimodal gradients
    grad,  # noqa: ANN001 [M]
    products,  # noqa: ANN001 [2M + 1]
    MODALITIES: tl.constexpr,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Σ w_m u_m − (Σ w_m dot_m / ‖f‖²) f over one chunk, with w_m = grad_m / (‖f‖ ‖u_m‖)."""
    row = table + tl.program_id(0) * (MODALITIES + 7)
    count, is_fast = tl.load(row + MODALITIES + 2), tl.load(row + MODALITIES + 3)
    offsets = tl.arange(0, CHUNK)
    inverse_fusion = inverse_norm(tl.load(products + 2 * MODALITIES))
    total = tl.zeros((CHUNK,), tl.float64)
    along_fusion = inverse_fusion * 0.0
    for m in range(MODALITIES):
        weight = tl.load(grad + m).to(tl.float64) * inverse_fusion
        weight = weight * inverse_norm(tl.load(products + MODALITIES + m))
        along_fusion += weight * tl.load(products + m) * inverse_fusion * inverse_fusion
        values = read(tl.load(row + 2 + m), offsets, count, is_fast, ELEMENT)
        total += values.to(tl.float64) * weight
    fusion = read(tl.load(row + 1), offsets, count, is_fast, ELEMENT)
    total -= fusion.to(tl.float64) * along_fusion
    write(tl.load(row), offsets, count, is_fast, total.to(tl.float32).to(ELEMENT), ELEMENT)


def scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    """Multiply every gradient by its modality's coefficient; return the new squared norms [M + 1]."""
    check_scale(grads, owner, coefficients)
    return _scale_(grads, owner, coefficients)


def batched_cosine(fusion: Tensor, unimodal: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cosines [M], and dots [M], squared norms [M] and the squared norm of fusion as one tensor [2M + 1]."""
    check_head(fusion, unimodal)
    head = [tensor.contiguous() for tensor in (fusion, *unimodal)]
    modalities = len(unimodal)
    table = _head_table(head)
    chunks = len(table)
    partials = fusion.new_empty((2 * modalities + 1, chunks), dtype=torch.float64)
    if chunks:
        products_kernel[(chunks,)](
            table, partials, modalities, chunks, ELEMENTS[fusion.dtype], CHUNK, **OPTIONS
        )
    products = fusion.new_empty(2 * modalities + 1, dtype=torch.float64)
    cosines = fusion.new_empty(modalities, dtype=reference.cosine_dtype(fusion))
    cosines_kernel[(max(modalities, 1),)](
        partials, products, cosines, modalities, chunks, SUM_BLOCK, **OPTIONS
    )
    return cosines, products


def batched_cosine_backward(
    grad: Tensor, products: Tensor, fusion: Tensor, unimodal: Sequence[Tensor]
) -> Tensor:
    """Return the gradient with respect to fusion: Σ grad_m (u_m/‖u_m‖ − cos_m f/‖f‖) / ‖f‖."""
    check_backward(grad, products, fusion, unimodal)
    head = [tensor.contiguous() for tensor in (fusion, *unimodal)]
    out = torch.empty_like(head[0])
    table = _head_table([out, *head])
    if len(table):
        backward_kernel[(len(table),)](
            table,
            grad.contiguous(),
            products.contiguous(),
            len(unimodal),
            ELEMENTS[fusion.dtype],
            CHUNK,
            **OPTIONS,
        )
    return out


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


def _scale_(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    modalities = coefficients.numel()
    # Sort by modality, -1 last, so that the partial sums of a modality lie side by side.
    groups, begins, first = [], [], 0
    buckets: list[list[int]] = [[] for _ in range(modalities + 1)]
    for position, modality in enumerate(owner):
        buckets[modality].append(position)
    for modality, bucket in enumerate(buckets):
        begins.append(first)
        label = modality if modality < modalities else -1
        for dtype, entries in tables.entries([[grads[s] for s in bucket]], [label] * len(bucket)).items():
            table = tables.chunk_table(tuple(entries), first, dtype.itemsize, coefficients.device)
            groups.append((dtype, table))
            first += len(table)
    partials = coefficients.new_empty(first, dtype=torch.float64)
    for dtype, table in groups:
        if len(table):
            scale_kernel[(len(table),)](
                table, coefficients, coefficients.stride(0), partials, ELEMENTS[dtype], CHUNK, **OPTIONS
            )
    sq_norms = partials.new_empty(modalities + 1)
    ends = _begins((*begins, first), partials.device)
    sum_kernel[(modalities + 1,)](partials, ends, sq_norms, SUM_BLOCK, **OPTIONS)
    return sq_norms


def _head_table(tensors: Sequence[Tensor]) -> Tensor:
    (entries,) = tables.entries([[tensor] for tensor in tensors], [0]).values()
    return tables.chunk_table(tuple(entries), 0, tensors[0].element_size(), tensors[0].device)


@tables.kept
def _begins(begins: tuple[int, ...], device: torch.device) -> Tensor:
    return tables.to_device(torch.tensor(begins, dtype=torch.int64), device)
