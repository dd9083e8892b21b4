"""Tables that assign a chunk of memory to each program of a launch, and helpers that all kernels share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # elements of each tensor per program
SUM_BLOCK = 1024  # partial sums added at a time
ALIGNMENT = 16  # bytes of the widest access
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
ELEMENTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# A table's columns after the addresses: elements in the chunk, whether the chunk is full and all its addresses are
# aligned, the tensor's position, its modality, and the index of the chunk's sum.
COLUMNS = 5

Entry = tuple[tuple[int, ...], int, int, int]  # addresses, elements, position, modality


def entries(lists: Sequence[Sequence[Tensor]], owner: Sequence[int]) -> dict[torch.dtype, list[Entry]]:
    """Group the tensors at each position of several lists by dtype, because a Triton kernel has one dtype.

    Raises:
        ValueError: a dtype that no kernel supports.
    """
    groups: dict[torch.dtype, list[Entry]] = {}
    for position, (modality, *tensors) in enumerate(zip(owner, *lists, strict=True)):
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        entry = (addresses, tensors[0].numel(), position, modality)
        groups.setdefault(tensors[0].dtype, []).append(entry)
    if not groups.keys() <= ELEMENTS.keys():
        raise ValueError(
            f"the Triton kernels take float32, bfloat16 and float16, found {[*groups]}: call the functions of "
            "cggm_ops, which choose the reference for float64"
        )
    return groups


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache the last 64 tables that a function has made, each for its stream.

    The copy of a table to the device, and the reuse of its memory, follow the order of one stream: another stream could
    read it too early or too late.

    While a CUDA graph is captured nothing is cached: the copy to the device happens only when the graph runs, and the
    graph must own the memory that it reads.
    """

    @functools.lru_cache(maxsize=64)
    def cached(stream: int, *arguments: Any) -> Tensor:
        return make(*arguments)

    @functools.wraps(make)
    def table(*arguments: Any) -> Tensor:
        if not torch.cuda.is_initialized():
            return cached(0, *arguments)
        if torch.cuda.is_current_stream_capturing():
            return make(*arguments)
        return cached(torch.cuda.current_stream().cuda_stream, *arguments)

    return table


@kept
def chunk_table(entries: tuple[Entry, ...], first_sum: int, size: int, device: torch.device) -> Tensor:
    """Cut tensors into chunks; return a table [chunks, addresses + COLUMNS] on the device."""
    rows = []
    for addresses, numel, position, modality in entries:
        is_aligned = all(address % ALIGNMENT == 0 for address in addresses)
        for start in range(0, numel, CHUNK):
            count = min(CHUNK, numel - start)
            moved = (address + start * size for address in addresses)
            is_fast = int(is_aligned and count == CHUNK)
            rows.append((*moved, count, is_fast, position, modality, first_sum + len(rows)))
    return to_device(torch.tensor(rows, dtype=torch.int64), device)


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor, or a copy with the strides of a dense tensor."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


@triton.jit
def read(address, offsets, count, is_fast, ELEMENT: tl.constexpr):  # noqa: ANN001, ANN201
    """Read a chunk, with zeros beyond its end. With a mask, accesses would be narrower than 128 bits."""
    if is_fast:
        values = tl.load(tl.multiple_of(address.to(tl.pointer_type(ELEMENT)), 16) + offsets)
    else:
        values = tl.load(address.to(tl.pointer_type(ELEMENT)) + offsets, mask=offsets < count, other=0.0)
    return values


@triton.jit
def write(address, offsets, count, is_fast, values, ELEMENT: tl.constexpr):  # noqa: ANN001, ANN201
    """Write a chunk, nothing beyond its end."""
    if is_fast:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(ELEMENT)), 16) + offsets, values)
    else:
        tl.store(address.to(tl.pointer_type(ELEMENT)) + offsets, values, mask=offsets < count)


@triton.jit
def sum_columns(pointer, count, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """Sum `count` numbers in a fixed order."""
    total = tl.zeros((BLOCK,), tl.float64)
    offsets = tl.arange(0, BLOCK)
    start = 0
    while start < count:
        total += tl.load(pointer + start + offsets, mask=start + offsets < count, other=0.0)
        start += BLOCK
    return tl.sum(total)
