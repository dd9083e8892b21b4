"""The inputs of one point of the measurements, what is timed on them, and the memory that they need."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from harness import Alternative, Memory, Timing
from torch import Tensor

from gpu.budget import Skipped

Timer = Callable[..., dict[str, Timing]]  # interleave, with its rounds and seconds chosen


@dataclass(frozen=True)
class Case:
    """One point of the measurements.

    Attributes:
        nbytes: of all tensors that the operator is given, together.
        tensors: how many gradients there are, or segments of a set.
        modalities: how many.
        dtype: of all tensors.
        device: where they lie.
    """

    nbytes: int
    tensors: int = 200
    modalities: int = 2
    dtype: torch.dtype = torch.float32
    device: str = "cuda"

    def make(self, lists: int = 1, tensors: int | None = None) -> list[list[Tensor]]:
        """Lists of random tensors, `nbytes` in all."""
        count = self.tensors if tensors is None else tensors
        size = max(1, self.nbytes // (self.dtype.itemsize * lists * count))
        return [
            [torch.randn(size, device=self.device).mul_(0.01).to(self.dtype) for _ in range(count)]
            for _ in range(lists)
        ]

    def owner(self) -> list[int]:
        """The modality of each tensor, in turn."""
        return [index % self.modalities for index in range(self.tensors)]

    def coefficients(self) -> Tensor:
        """Close to one, so that thousands of calls neither overflow nor vanish; exactly one would be skipped."""
        return torch.linspace(0.99998, 1.00002, self.modalities, device=self.device) + 1e-6

    def scale_by_foreach(self, grads: list[Tensor]) -> None:
        """One call per modality, the coefficients on the host already."""
        for modality in range(self.modalities):
            torch._foreach_mul_(grads[modality :: self.modalities], 0.99999)


@dataclass(frozen=True)
class Contest:
    """What is timed against what, and the bytes that ours must move at the least."""

    ours: Alternative
    others: Mapping[str, Alternative]
    memory: Memory


def size_of(*lists: list[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for one in lists for tensor in one)


def release(device: str) -> None:
    """Give back the memory of what is over."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def check_memory(case: Case) -> None:
    """Skip a case for which there is no room: inputs are made in float32 first."""
    release(case.device)
    if case.device != "cuda":
        return
    free, needed = torch.cuda.mem_get_info()[0], 3 * case.nbytes
    if needed > free:
        raise Skipped(f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
