"""Checks of single arguments: each error names the argument, what is allowed, and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise unless the value is a finite number with `low <= value <= high`; `name` is the argument's name.

    Numbers of NumPy count; a bool, a fraction and a tensor do not.

    >>> check_range("rho", -1.0, 0.0)
    Traceback (most recent call last):
    ValueError: rho must be a number in [0, inf), got -1.0
    """
    number = isinstance(value, Real) and not isinstance(value, (bool, Fraction))
    if not number or not low <= value <= high or not math.isfinite(value):
        end = f"{high:g}]" if math.isfinite(high) else "inf)"
        raise ValueError(f"{name} must be a number in [{low:g}, {end}, got {value!r}")


def check_whole(name: str, value: Any, low: int | None = None) -> None:
    """Raise unless the value is a whole number, `low` or more.

    >>> check_whole("every", 0, 1)
    Traceback (most recent call last):
    ValueError: every must be a whole number, 1 or more, got 0
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or (low is not None and value < low):
        limit = "" if low is None else f", {low} or more"
        raise ValueError(f"{name} must be a whole number{limit}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise unless the value is True or False.

    >>> check_flag("noise", "no")
    Traceback (most recent call last):
    TypeError: noise must be True or False, got 'no'
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_word(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless the value is one of the allowed words.

    >>> check_word("kind", "huber", ("l1", "mse"))
    Traceback (most recent call last):
    ValueError: kind must be 'l1' or 'mse', got 'huber'
    """
    if not isinstance(value, str) or value not in allowed:
        *others, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")
