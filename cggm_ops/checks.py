"""Validation for the implementations in Python; csrc/check.h holds the same rules for the compiled ones."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_segments(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> None:
    """Refuse gradients, owners or coefficients that `scale_` and `modulate_` cannot take."""
    if coefficients.dim() != 1 or coefficients.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"coefficients must be one-dimensional, float32 or float64, found {coefficients.dim()} dimensions of "
            f"{coefficients.dtype}"
        )
    if len(owner) != len(grads):
        raise ValueError(
            f"owner must name one modality per tensor in grads, found {len(owner)} for {len(grads)}"
        )
    modalities = coefficients.numel()
    for index, (grad, modality) in enumerate(zip(grads, owner, strict=True)):
        check_dtype(grad, "grads")
        check_same_device(grad, coefficients, "grads", "coefficients")
        if not -1 <= modality < modalities:
            raise ValueError(
                f"owner must lie in [-1, {modalities}) for {modalities} coefficients, found {modality} at {index}"
            )
        if not is_dense(grad):
            raise ValueError(
                f"grads[{index}] must fill its memory without gaps or overlaps: pass .contiguous() and copy the "
                "result back"
            )
    ranges = sorted((*_memory(grad), index) for index, grad in enumerate(grads) if grad.numel() > 0)
    for (_, end, first), (begin, _, second) in itertools.pairwise(ranges):
        if end > begin:
            raise ValueError(
                f"grads must not share memory, but grads[{first}] and grads[{second}] do: pass every tensor once"
            )


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


def check_modulation(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Sequence[Tensor],
) -> None:
    """Refuse what `modulate_` cannot take."""
    check_segments(grads, owner, coefficients)
    if len(unimodal) != coefficients.numel():
        raise ValueError(
            f"unimodal must hold one tensor per coefficient ({coefficients.numel()}), found {len(unimodal)}"
        )
    check_same_device(fusion, coefficients, "fusion", "coefficients")
    scaled = [_memory(grad) for grad, modality in zip(grads, owner, strict=True) if modality >= 0]
    for name, tensor in [("fusion", fusion), *(("unimodal", tensor) for tensor in unimodal)]:
        begin, end = _memory(tensor)
        if any(begin < other_end and other_begin < end for other_begin, other_end in scaled):
            raise ValueError(
                f"{name} shares memory with a tensor in grads that is to be scaled: give that one the owner -1, or "
                "pass a copy"
            )
    check_head(fusion, unimodal)


def check_sets(tensors: Sequence[Tensor], sets: int) -> None:
    """Refuse gradient sets that `segment_gram` and `segment_combine_` cannot take."""
    if sets < 1 or not tensors or len(tensors) % sets:
        raise ValueError(
            f"sets must be one or more lists of equally many tensors, found {len(tensors)} tensors in {sets} sets"
        )
    count = len(tensors) // sets
    for position, tensor in enumerate(tensors):
        first = tensors[position % count]
        name = f"sets[{position // count}][{position % count}]"
        check_dtype(tensor, name)
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, found {tensor.layout}: call .to_dense() on it")
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(
                f"{name} must have the shape and dtype of its segment in sets[0] ({list(first.shape)}, {first.dtype}), "
                f"found {list(tensor.shape)}, {tensor.dtype}"
            )
        check_same_device(tensor, tensors[0], name, "sets[0][0]")


def check_combination(into: Sequence[Tensor], others: Sequence[Tensor], weights: Tensor) -> None:
    """Refuse what `segment_combine_` cannot take."""
    if weights.dim() != 2 or weights.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "weights must be [S, K], one row per segment and one column per set, float32 or float64, found "
            f"{list(weights.shape)} of {weights.dtype}"
        )
    count, sets = weights.shape
    if len(into) != count or len(others) != count * (sets - 1):
        raise ValueError(
            f"weights [{count}, {sets}] must have one row per tensor of a set ({len(into)}) and one column per set, "
            f"found {len(others)} tensors in the other sets"
        )
    if not into:
        return
    check_sets([*into, *others], sets)
    check_same_device(into[0], weights, "sets", "weights")
    check_writable(into, "sets[0]")
    check_not_written(others, "the other sets", into, "sets[0]")


def check_writable(tensors: Sequence[Tensor], name: str) -> None:
    """Refuse gaps in the memory of tensors to be changed, and memory that occurs twice."""
    if not all(is_dense(tensor) for tensor in tensors):
        raise ValueError(f"{name} must fill their memory without gaps or overlaps: make them .contiguous()")
    ranges = sorted(_memory(tensor) for tensor in tensors if tensor.numel() > 0)
    if any(end > begin for (_, end), (begin, _) in itertools.pairwise(ranges)):
        raise ValueError(f"{name} must not share memory: pass every tensor once")


def check_not_written(read: Sequence[Tensor], name: str, written: Sequence[Tensor], where: str) -> None:
    """Refuse tensors that would change while they are read; `written` is free of overlaps."""
    ranges = sorted(_memory(tensor) for tensor in written if tensor.numel() > 0)
    begins = [begin for begin, _ in ranges]
    for tensor in read:
        begin, end = _memory(tensor)
        before = bisect.bisect_left(begins, end) - 1  # the last one that begins before this tensor ends
        if tensor.numel() > 0 and before >= 0 and ranges[before][1] > begin:
            raise ValueError(f"{name} share memory with {where}, which are changed: pass a copy")


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one block of memory without gaps or overlaps, in whatever order."""
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


def _memory(tensor: Tensor) -> tuple[int, int]:
    """First and last address (exclusive), gaps included."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def check_dtype(tensor: Tensor, name: str) -> None:
    """Refuse dtypes that no operator takes."""
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name} must be float32, bfloat16, float16 or float64, found {tensor.dtype}: convert it first"
        )


def check_same_device(tensor: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Refuse a tensor that is not where `other` is."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), found {tensor.device}: move one of them "
            "with .to(device)"
        )
