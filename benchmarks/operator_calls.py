"""The inputs of an operator, and a call of it: see operator_cases.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import Alternative, Memory, random_tensor
from torch import Tensor

from cggm_ops import Modulation, reference


def small_numbers(size: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return normal numbers of about 0.01, so that thousands of calls neither overflow nor vanish."""
    return random_tensor(size, dtype, device).mul_(0.01)


@dataclass(frozen=True)
class Case:
    """The inputs of an operator.

    Attributes:
        sizes: the elements of each tensor of a list; `batched_cosine` uses the first for its head gradients.
        modalities: the number of modalities, M.
        dtype: the dtype of the tensors.
        device: the device of the tensors.
        unowned: whether every (M + 1)-th tensor, starting with the first, belongs to no modality.
        draw: makes a tensor of a given size, dtype and device.
    """

    sizes: tuple[int, ...]
    modalities: int = 2
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    unowned: bool = False
    draw: Callable[[int, torch.dtype, str], Tensor] = small_numbers

    @classmethod
    def even(cls, elements: int, tensors: int, **options: Any) -> Case:
        """Return a case of equally large tensors."""
        return cls((max(1, elements // tensors),) * tensors, **options)

    def lists(self, count: int) -> list[list[Tensor]]:
        """Draw lists of tensors of the case's sizes."""
        return [[self.draw(size, self.dtype, self.device) for size in self.sizes] for _ in range(count)]

    def head(self, size: int) -> list[Tensor]:
        """Draw the head gradient of the fusion and that of each modality."""
        return [self.draw(size, self.dtype, self.device).reshape(-1) for _ in range(self.modalities + 1)]

    def owner(self) -> list[int]:
        """Return the modality of each tensor, in turn."""
        classes = self.modalities + self.unowned
        return [index % classes - self.unowned for index in range(len(self.sizes))]

    def coefficients(self) -> Tensor:
        """Return coefficients close to one; exactly one would be skipped by the kernels."""
        return torch.linspace(0.99998, 1.00002, self.modalities, device=self.device) + 1e-6

    def modulation(self) -> Modulation:
        """Return the coefficients as scales of the gradients."""
        return Modulation(owner=self.owner(), grad_scale=self.coefficients())


@dataclass(frozen=True)
class Call:
    """An operator on its inputs.

    Attributes:
        operator: its name in `torch.ops.cggm_ops` and in `cggm_ops.reference`.
        arguments: the arguments of that operator.
        ours: calls the public function on the same tensors.
        others: what a user would otherwise write, by name; those with "loop" in their name loop over parameters.
        changed: the lists of tensors that the operator changes.
        read: the lists of tensors that it reads.
    """

    operator: str
    arguments: tuple[Any, ...]
    ours: Alternative
    others: Mapping[str, Alternative]
    changed: Sequence[Sequence[Tensor]] = ()
    read: Sequence[Sequence[Tensor]] = ()

    def definition(self) -> Any:
        """Call the definition on the same tensors."""
        return getattr(reference, self.operator)(*self.arguments)

    @property
    def memory(self) -> Memory:
        """The bytes that the operator must move."""
        sizes = [sum(t.nbytes for row in lists for t in row) for lists in (self.read, self.changed)]
        return Memory(*sizes)
