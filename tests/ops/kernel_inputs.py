"""Inputs for the checks of kernels: see kernel_checks.py."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ops import reference
from tolerances import assert_elements

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # no GPU kernel is built for float64
SIZES = (1, 3, 31, 1000, 2 * 8192 + 5, 8191, 8192, 0)  # every fourth is aligned: one of several full chunks
MARGIN = 16  # elements before and after a view that no kernel may touch
MARK = 7.0


class Guarded:
    """Tensors inside larger buffers of marks, at addresses of every alignment, one of them transposed."""

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        self.buffers, self.tensors = [], []
        for index, size in enumerate(sizes):
            offset = MARGIN + index % 4  # aligned to 16 bytes every fourth time
            buffer = torch.full((size + 2 * MARGIN + 4,), MARK, dtype=dtype, device=device)
            view = buffer[offset : offset + size]
            view.copy_(torch.randn(size, dtype=torch.float32).to(device))
            self.buffers.append((buffer, offset, size))
            self.tensors.append(view.view(2, -1).t() if size and size % 2 == 0 else view)

    def check(self) -> None:
        """Fail where a neighbour has changed."""
        for buffer, offset, size in self.buffers:
            around = torch.cat([buffer[:offset], buffer[offset + size :]])
            assert bool((around == MARK).all()), f"memory around a view of {size} elements was overwritten"


def poison(device: str) -> None:
    """Leave NaN where the next results will lie."""
    blocks = [
        torch.full((count,), float("nan"), dtype=torch.float64, device=device)
        for count in (1, 8, 64, 512, 4096)
    ]
    del blocks


def copies(tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The same values elsewhere."""
    return [tensor.detach().clone().to(dtype or tensor.dtype) for tensor in tensors]


def assert_norms(norms: Tensor, grads: list[Tensor], owner: list[int]) -> None:
    """The squared norms are those of what was stored."""
    expected = torch.zeros_like(norms)
    for grad, modality in zip(grads, owner, strict=True):
        expected[modality] += grad.double().square().sum()
    assert_elements("squared norm", norms, expected)


def products_of_norms(gram: Tensor) -> Tensor:
    """What no dot product of two of the vectors exceeds, [S, K, K]."""
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    return norms[:, :, None] * norms[:, None, :]


def combine_exactly(lists: list[list[Tensor]], weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The definition in float64, and the terms that were rounded: K times Σ_k |w_k g_k| in each segment."""
    wide = [copies(row, torch.float64) for row in lists]
    magnitudes = [[tensor.abs() for tensor in row] for row in wide]
    for rows, factors in ((wide, weights), (magnitudes, len(lists) * weights.abs())):
        reference.segment_combine_(rows[0], [tensor for row in rows[1:] for tensor in row], factors)
    return wide[0], magnitudes[0]
