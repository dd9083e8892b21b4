"""The one tolerance table.

A kernel's error against float64 may be at most twice that of plain PyTorch in the same dtype, plus a floor relative to
the largest exact value: where plain PyTorch happens to be exact, the kernel may still round once. Element by element, a
kernel may be as far from the definition as two results that each keep to the floor can be from one another.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Half the distance between neighbouring values around one: the error of rounding once.
ROUNDING = {
    dtype: torch.finfo(dtype).eps / 2
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
# Sums in float64 of up to a million terms, added in another order: each order errs by some 1e-14 relative.
SUM64 = 1e-13

FLOORS = {
    # The cosine is rounded once to float32 (kept in float64 for float64), whatever the dtype of the inputs.
    "cosine": {
        torch.float64: SUM64,
        torch.float32: ROUNDING[torch.float32],
        torch.bfloat16: ROUNDING[torch.float32],
        torch.float16: ROUNDING[torch.float32],
    },
    # Rounded once to the dtype of the fusion's gradient; in float32 plain PyTorch may happen to be exact.
    "cosine gradient": {
        torch.float64: SUM64,
        torch.float32: 2 * ROUNDING[torch.float32],
        torch.bfloat16: ROUNDING[torch.bfloat16],
        torch.float16: ROUNDING[torch.float16],
    },
    # One multiplication and one rounding: the definition, so that there is nothing to allow beyond the rounding itself.
    "scaled gradient": ROUNDING,
    # Products of the stored values summed in float64; the scale is the larger norm's square.
    "gram": dict.fromkeys(ROUNDING, SUM64),
    # One product and one rounding per set more than in exact arithmetic, in float32, and a last one to the dtype.
    "combination": {dtype: unit + 4 * ROUNDING[torch.float32] for dtype, unit in ROUNDING.items()}
    | {torch.float64: 4 * ROUNDING[torch.float64]},
    # A dozen roundings in float32, of which plain PyTorch has as many, and a last one to the dtype. The parameter
    # moves by lr at most, so that errors of the update vanish beside the parameter's own rounding.
    "optimizer step": {dtype: unit + 8 * ROUNDING[torch.float32] for dtype, unit in ROUNDING.items()}
    | {torch.float64: 8 * ROUNDING[torch.float64]},
    # Squares of the stored values summed in float64.
    "squared norm": dict.fromkeys(ROUNDING, SUM64),
}

# What the roundings before the last one may add, relative to the terms that are summed instead of to their sum, which
# may have cancelled.
TERMS = {
    # Products of both signs, relative to the product of the norms, which the cosine has been divided by.
    "cosine": dict.fromkeys(ROUNDING, SUM64),
    # The products that go into the gradient were summed in float64.
    "cosine gradient": dict.fromkeys(ROUNDING, SUM64),
    # The weight, the product and the sum are each rounded to float32, for each set.
    "combination": dict.fromkeys(ROUNDING, 4 * ROUNDING[torch.float32])
    | {torch.float64: 4 * ROUNDING[torch.float64]},
    # A sum of products of both signs.
    "gram": dict.fromkeys(ROUNDING, SUM64),
    # Bias corrections magnify roundings: the first steps divide by 1 - β₁ = 0.1, so that some ten count thrice.
    "optimizer step": dict.fromkeys(ROUNDING, 32 * ROUNDING[torch.float32])
    | {torch.float64: 32 * ROUNDING[torch.float64]},
}


def assert_elements(
    quantity: str, actual: Tensor, definition: Tensor, *, terms: Tensor | float = 0.0
) -> None:
    """Hold every element of `actual` to the table by itself; `definition` is in the same dtype or in float64.

    Args:
        quantity: a line of the table.
        actual: the kernel's.
        definition: what it has to be.
        terms: the magnitude of what was summed, where that can be more than the result's.

    Example:
        >>> assert_elements("gram", torch.zeros(1), torch.tensor([1e-13]), terms=1.0)
    """
    wanted = definition.double()
    floor, of_terms = FLOORS[quantity][actual.dtype], TERMS.get(quantity, {}).get(actual.dtype, 0.0)
    # Below the smallest normal number float16 keeps its last bit; in the others hardware may flush to zero.
    numbers = torch.finfo(actual.dtype)
    least = numbers.tiny * (numbers.eps if actual.dtype == torch.float16 else 1.0)
    allowed = 2 * (floor * wanted.abs() + of_terms * terms) + least
    error = (actual.double() - wanted).abs()
    assert bool((error <= allowed).all()), (
        f"{quantity} in {actual.dtype}: error {error.max().item():.3g} in one of {error.numel()} elements"
    )


def assert_accurate(
    quantity: str, dtype: torch.dtype, *, actual: Tensor, plain: Tensor, exact: Tensor
) -> None:
    """Hold `actual` to the table; `plain` is the same formula in plain PyTorch, `exact` in float64.

    Example:
        >>> one = torch.ones(1)
        >>> assert_accurate("cosine", torch.float32, actual=one, plain=one, exact=one.double())
    """
    assert exact.dtype == torch.float64
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    of_plain = (plain.double() - exact).abs().max().item() if exact.numel() else 0.0
    scale = exact.abs().max().item() if exact.numel() else 0.0
    allowed = 2 * of_plain + FLOORS[quantity][dtype] * scale
    assert error <= allowed, (
        f"{quantity} in {dtype}: error {error:.3g}, allowed {allowed:.3g} (plain {of_plain:.3g})"
    )
