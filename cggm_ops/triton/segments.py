"""segment_gram and segment_combine_ in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cggm_ops import checks
from cggm_ops.triton import tables
from cggm_ops.triton.tables import CHUNK, ELEMENTS, OPTIONS, SUM_BLOCK, read, sum_columns, write


@triton.jit
def gram_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, K + COLUMNS]
    partials,  # noqa: ANN001 [K * K, chunks of all segments]
    chunks,  # noqa: ANN001
    SETS: tl.constexpr,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Dot products of one chunk of K gradient sets; only j ≤ k is stored."""
    row = table + tl.program_id(0) * (SETS + 5)
    count, is_fast, place = tl.load(row + SETS), tl.load(row + SETS + 1), tl.load(row + SETS + 4)
    offsets = tl.arange(0, CHUNK)
    for j in range(SETS):
        first = read(tl.load(row + j), offsets, count, is_fast, ELEMENT).to(tl.float64)
        tl.store(partials + j * (SETS + 1) * chunks + place, tl.sum(first * first))
        for k in range(j + 1, SETS):
            second = read(tl.load(row + k), offsets, count, is_fast, ELEMENT).to(tl.float64)
            tl.store(partials + (j * SETS + k) * chunks + place, tl.sum(first * second))


@triton.jit
def gram_sum_kernel(  # noqa: ANN201
    partials,  # noqa: ANN001 [K * K, chunks]
    places,  # noqa: ANN001 [S, 2]: the first partial sum, and how many
    gram,  # noqa: ANN001 [S, K, K]
    chunks,  # noqa: ANN001
    SETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the chunks of one segment, one pair of SETS, and store it on both sides of the diagonal."""
    segment, pair = tl.program_id(0), tl.program_id(1)
    j, k = pair // SETS, pair % SETS
    if j <= k:
        begin, count = tl.load(places + 2 * segment), tl.load(places + 2 * segment + 1)
        total = sum_columns(partials + pair * chunks + begin, count, BLOCK)
        tl.store(gram + segment * SETS * SETS + j * SETS + k, total)
        tl.store(gram + segment * SETS * SETS + k * SETS + j, total)


@triton.jit
def combine_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, K + COLUMNS]
    weights,  # noqa: ANN001 [S, K]
    row_stride,  # noqa: ANN001
    column_stride,  # noqa: ANN001
    SETS: tl.constexpr,
    ELEMENT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """g_0 ← Σ_k w_k g_k over one chunk."""
    row = table + tl.program_id(0) * (SETS + 5)
    count, is_fast = tl.load(row + SETS), tl.load(row + SETS + 1)
    weight = weights + tl.load(row + SETS + 2) * row_stride
    offsets = tl.arange(0, CHUNK)
    target = tl.load(row)
    total = read(target, offsets, count, is_fast, ELEMENT).to(ARITHMETIC) * tl.load(weight).to(ARITHMETIC)
    for k in range(1, SETS):
        values = read(tl.load(row + k), offsets, count, is_fast, ELEMENT).to(ARITHMETIC)
        total += values * tl.load(weight + k * column_stride).to(ARITHMETIC)
    write(target, offsets, count, is_fast, total.to(ELEMENT), ELEMENT)


def segment_gram(tensors: Sequence[Tensor], sets: int) -> Tensor:
    """Return all dot products of K sets of S tensors, given one set after the other, per segment: [S, K, K]."""
    checks.check_sets(tensors, sets)
    lists = _in_one_layout(tensors, sets)
    count, device = len(lists[0]), tensors[0].device
    places, launches, first = [(0, 0)] * count, [], 0
    for dtype, entries in tables.entries(lists, [-1] * count).items():
        launches.append((dtype, tables.chunk_table(tuple(entries), first, dtype.itemsize, device)))
        for _, numel, segment, _ in entries:
            chunks = triton.cdiv(numel, CHUNK)
            places[segment] = (first, chunks)
            first += chunks
    partials = tensors[0].new_empty((sets * sets, first), dtype=torch.float64)
    for dtype, table in launches:
        if len(table):
            gram_kernel[(len(table),)](table, partials, first, sets, ELEMENTS[dtype], CHUNK, **OPTIONS)
    gram = tensors[0].new_empty((count, sets, sets), dtype=torch.float64)
    where = _places(tuple(places), device)
    gram_sum_kernel[(count, sets * sets)](partials, where, gram, first, sets, SUM_BLOCK, **OPTIONS)
    return gram


def segment_combine_(into: Sequence[Tensor], others: Sequence[Tensor], weights: Tensor) -> None:
    """Write Σ_k weights[s, k] g_k[s] over the tensors of set 0; `others` holds the sets 1 to K - 1."""
    checks.check_combination(into, others, weights)
    count, sets = weights.shape
    lists = _in_one_layout([*into, *others], sets) if into else []
    for dtype, entries in tables.entries(lists, [-1] * count).items() if into else ():
        table = tables.chunk_table(tuple(entries), 0, dtype.itemsize, weights.device)
        if len(table):
            element, arithmetic = ELEMENTS[dtype], tables.arithmetic(dtype)
            combine_kernel[(len(table),)](
                table, weights, *weights.stride(), sets, element, arithmetic, CHUNK, **OPTIONS
            )


def _in_one_layout(tensors: Sequence[Tensor], sets: int) -> list[list[Tensor]]:
    """K lists of S tensors; copies where a tensor lies otherwise in memory than that of set 0."""
    count = len(tensors) // sets
    first = [tensor if checks.is_dense(tensor) else tensor.contiguous() for tensor in tensors[:count]]
    rest = [tables.laid_out_like(tensor, first[s % count]) for s, tensor in enumerate(tensors[count:])]
    return [first, *(rest[start : start + count] for start in range(0, len(rest), count))]


@tables.kept
def _places(places: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return tables.to_device(torch.tensor(places, dtype=torch.int64), device)
