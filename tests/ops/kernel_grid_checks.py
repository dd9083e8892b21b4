"""Checks of the barriers inside kernels, with more chunks than a GPU runs blocks at a time: see kernel_checks.py."""

from __future__ import annotations

import torch
from kernel_inputs import assert_norms, copies, poison
from kernel_optimizer_checks import step_adamw

import cggm_ops
from cggm_ops import reference
from tolerances import assert_elements

SIZES = (500 * 8192 + 5, 70_001, 3)


def check_full_grid(device: str, dtype: torch.dtype) -> None:
    """modulate_ with more chunks than the device runs blocks at a time, all of which meet at the kernel's barrier."""
    grads = [torch.randn(size, device=device).to(dtype) for size in SIZES]
    owner, coefficients = [1, 0, -1], torch.tensor([0.5, 1.7], device=device)
    head = [torch.randn(1_000_003, device=device).to(dtype) for _ in range(3)]
    expected = copies(grads)
    wanted, _ = reference.modulate_(expected, owner, coefficients, head[0], head[1:])
    for _ in range(3):
        again = copies(grads)
        poison(device)
        cosines, norms = cggm_ops.modulate_(again, owner, coefficients, head[0], head[1:])
        for found, exact in zip(again, expected, strict=True):
            assert_elements("scaled gradient", found, exact)
        assert_norms(norms, again, owner)
        assert_elements("cosine", cosines, wanted, terms=1.0)


def check_full_grid_of_counters(device: str, dtype: torch.dtype) -> None:
    """adamw_ with counters on the device, which rise after a barrier of as many blocks as the device runs at a time."""
    start = [[torch.rand(size, device=device).to(dtype) for size in SIZES] for _ in range(4)]
    settings, modulation = cggm_ops.AdamSettings(lr=0.05), cggm_ops.Modulation()
    definition = cggm_ops.schema.DEFINITIONS["adamw_"]
    counters = [torch.zeros((), device=device) for _ in SIZES]
    wide = [torch.zeros((), dtype=torch.float64, device=device) for _ in SIZES]
    for taken in range(1, 4):
        wanted = [copies(row, torch.float64) for row in start]
        step_adamw(wanted, wide, settings, modulation, definition)
        step_adamw(start, counters, settings, modulation, None)
        assert [counter.item() for counter in counters] == [taken] * len(SIZES), "steps"
        for found, new in zip(start[0] + start[2] + start[3], wanted[0] + wanted[2] + wanted[3], strict=True):
            assert_elements("optimizer step", found, new, terms=1 + new.abs())


GRID_CHECKS = [check_full_grid, check_full_grid_of_counters]  # elsewhere than on a GPU there is no such grid
