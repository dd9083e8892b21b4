"""Inputs for the checks of kernels, and comparisons with the definitions: see kernel_checks.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from operator_cases import Call, Case
from torch import Tensor

from cggm_ops import reference
from tolerances import assert_elements

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # no GPU kernel is built for float64
SIZES = (
    1,
    3,
    31,
    1000,
    2 * 8192 + 5,
    8191,
    8192,
    0,
)  # every fourth is aligned; one of those has full chunks
MARGIN = 16  # elements around a view that no kernel may change
MARK = 7.0


class Guards:
    """Draws views of larger buffers filled with a mark, at addresses of every alignment, some of them transposed."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int, int]] = []

    def draw(self, size: int, dtype: torch.dtype, device: str) -> Tensor:
        """Return normal numbers."""
        offset = MARGIN + len(self.buffers) % 4  # every fourth is aligned to 16 bytes
        buffer = torch.full((size + 2 * MARGIN + 4,), MARK, dtype=dtype, device=device)
        view = buffer[offset : offset + size]
        view.copy_(torch.randn(size, dtype=torch.float32).to(device))
        self.buffers.append((buffer, offset, size))
        return view.view(2, -1).t() if size and size % 2 == 0 else view

    def check(self) -> None:
        """Fail if memory around a view has changed."""
        for buffer, offset, size in self.buffers:
            around = torch.cat([buffer[:offset], buffer[offset + size :]])
            assert bool((around == MARK).all()), f"memory around a view of {size} elements was overwritten"


def guarded(
    device: str, dtype: torch.dtype, sizes: tuple[int, ...] = SIZES, modalities: int = 3
) -> tuple[Case, Guards]:
    """Return a case whose tensors are views of guarded memory, and the guards."""
    guards = Guards()
    return Case(sizes, modalities, dtype, device, unowned=True, draw=guards.draw), guards


def normal(size: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return normal numbers in memory of their own."""
    return torch.randn(size, device=device).to(dtype)


def mixed() -> Callable[[int, torch.dtype, str], Tensor]:
    """Return a function that draws tensors of one dtype after the other."""
    dtypes = itertools.cycle(DTYPES)
    return lambda size, _, device: normal(size, next(dtypes), device)


def poison(device: str) -> None:
    """Fill memory that the next results will probably use with NaN, and free it."""
    nan = {"fill_value": float("nan"), "dtype": torch.float64, "device": device}
    blocks = [torch.full((count,), **nan) for count in (1, 8, 64, 512, 4096)]
    del blocks


def compare(
    call: Call,
    quantity: str,
    *,
    exact: bool = True,
    terms: Callable[[Tensor], Tensor | float] = lambda wanted: 0.0,
) -> tuple[Any, Any]:
    """Call the kernel; compare what it changed with the definition, and what it read with the values before.

    Args:
        call: the operator on its inputs.
        quantity: the line of the tolerance table for the tensors that change.
        exact: whether the definition uses float64 instead of the dtype of the tensors.
        terms: returns the magnitude of the terms of a result, given the result.

    Returns:
        The results of the kernel and of the definition.
    """
    before: dict[int, Tensor] = {}
    copies: dict[int, Tensor] = {}

    def copy(argument: Any) -> Any:
        if isinstance(argument, list):
            return [copy(item) for item in argument]
        if not isinstance(argument, Tensor):
            return argument
        before[id(argument)] = argument.detach().clone()
        dtype = torch.float64 if exact else argument.dtype
        copies[id(argument)] = argument.detach().to(dtype, copy=True)
        return copies[id(argument)]

    wanted = getattr(reference, call.operator)(*map(copy, call.arguments))
    changed = [tensor for row in call.changed for tensor in row]
    poison(call.read[0][0].device.type)
    found = call.ours()
    for tensor in changed:
        exactly = copies[id(tensor)]
        assert_elements(quantity, tensor, exactly, terms=terms(exactly))
    only_read = {id(tensor): tensor for row in call.read for tensor in row}
    for tensor in changed:
        only_read.pop(id(tensor))
    for key, tensor in only_read.items():
        assert torch.equal(tensor, before[key]), "a tensor that is only read has changed"
    return found, wanted


def assert_norms(norms: Tensor, grads: list[Tensor], owner: list[int]) -> None:
    """Compare squared norms with those of the stored gradients."""
    expected = torch.zeros_like(norms)
    for grad, modality in zip(grads, owner, strict=True):
        expected[modality] += grad.double().square().sum()
    assert_elements("squared norm", norms, expected)


def products_of_norms(gram: Tensor) -> Tensor:
    """Return the upper bounds of the dot products, [S, K, K]."""
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    return norms[:, :, None] * norms[:, None, :]
