"""Checks of single tensors, and of memory that an operator changes."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Range = tuple[int, int, str]  # first address, address behind the last element, name of the tensor


def check_dtype(tensor: Tensor, name: str) -> None:
    """Refuse dtypes that no operator takes."""
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name} must be float32, bfloat16, float16 or float64, found {tensor.dtype}: convert it first"
        )


def check_same_device(tensor: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Refuse a tensor that is not on the device of `other`."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), found {tensor.device}: move one of them "
            "with .to(device)"
        )


def check_factors(factors: Tensor, dim: int, name: str) -> None:
    """Refuse coefficients, scales or weights of another dimension or dtype."""
    if factors.dim() != dim or factors.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be {('', 'one', 'two')[dim]}-dimensional, float32 or float64, found {factors.dim()} "
            f"dimensions of {factors.dtype}"
        )


def check_numbers(below: float = math.inf, **numbers: float) -> None:
    """Refuse hyper-parameters that are not in [0, below)."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < below:
            allowed = "in [0, 1)" if below == 1 else "finite and not negative"
            raise ValueError(f"{name} must be {allowed}, found {number!r}")


def check_flags(**flags: bool) -> None:
    """Refuse what is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, found {flag!r}")


def check_owner(owner: Sequence[int], count: int, tensors: str, factors: int, name: str) -> None:
    """Refuse owners that do not say for each tensor which entry of `name` belongs to it, or -1 for none."""
    if len(owner) != count:
        raise ValueError(
            f"owner must name one modality per tensor in {tensors}, found {len(owner)} for {count}"
        )
    for index, modality in enumerate(owner):
        if not -1 <= modality < factors:
            raise ValueError(
                f"owner must lie in [-1, {factors}) for {factors} entries of {name}, found {modality} at {index}"
            )


def check_written(lists: Mapping[str, Sequence[Tensor]]) -> list[Range]:
    """Refuse tensors to be changed that have gaps in memory or share it; return their memory, sorted."""
    ranges = []
    for name, tensors in lists.items():
        for index, tensor in enumerate(tensors):
            if not is_dense(tensor):
                raise ValueError(
                    f"{name}[{index}] must fill its memory without gaps or overlaps: pass .contiguous() and copy "
                    "the result back"
                )
            if has_memory(tensor):
                label = f"{name}[{index}]"
                ranges.append((*_memory(tensor, label), label))
    ranges.sort(key=lambda found: found[0])
    for (_, end, first), (begin, _, second) in itertools.pairwise(ranges):
        if end > begin:
            raise ValueError(f"{first} and {second} must not share memory: pass every tensor once")
    return ranges


def check_not_written(tensor: Tensor, name: str, written: Sequence[Range], fix: str = "pass a copy") -> None:
    """Refuse a tensor that would change while it is read; `written` is what `check_written` returned."""
    if not has_memory(tensor):
        return
    begin, end = _memory(tensor, name)
    # The last that begins before `end`.
    before = bisect.bisect_left(written, end, key=lambda found: found[0]) - 1
    if before >= 0 and written[before][1] > begin:
        raise ValueError(f"{name} shares memory with {written[before][2]}, which is changed: {fix}")


def has_memory(tensor: Tensor) -> bool:
    """Tell whether there are any elements in memory: tensors on the device "meta" and those of tracers have none."""
    return tensor.untyped_storage().device.type != "meta" and tensor.numel() > 0


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one block of memory without gaps or overlaps, in any order."""
    if tensor.layout != torch.strided:
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _memory(tensor: Tensor, name: str) -> tuple[int, int]:
    """First address and the one behind the last element, gaps included."""
    begin = tensor.data_ptr()
    if begin == 0:
        raise ValueError(f"{name} has no memory: its storage has been resized to 0")
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()
