"""What is said of an argument of another type: torch's own errors name no element, and run over many lines.

The public functions look at types only after a call has failed, so that no call that works pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

#: What torch raises for an argument of another type; the checks of the operators raise a ValueError.
UNCLEAR = (AttributeError, TypeError, RuntimeError)


def check_tensor(value: Any, name: str) -> None:
    """Refuse what is no dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, found {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized:
        kind = "a quantized one" if value.is_quantized else value.layout
        raise ValueError(f"{name} must be a dense tensor, found {kind}: convert it first")


def check_list(value: Any, name: str, of: str = "tensors") -> None:
    """Refuse what is no list or tuple."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a list of {of}, found {type(value).__name__}")


def check_tensors(value: Any, name: str) -> None:
    """Refuse what is no list of dense tensors."""
    check_list(value, name)
    for index, tensor in enumerate(value):
        check_tensor(tensor, f"{name}[{index}]")


def check_types(op: Any, arguments: Sequence[Any], first: str | None = None) -> None:
    """Refuse tensors, lists of tensors and owners of another type than the operator's schema has.

    Args:
        op: the operator's overload.
        arguments: its arguments, in order.
        first: what the user calls the first one; None for its name in the schema.
    """
    for position, (argument, value) in enumerate(zip(op._schema.arguments, arguments, strict=False)):
        name = first if first is not None and position == 0 else argument.name
        kind = str(argument.type)
        if kind == "List[Tensor]":
            check_tensors(value, name)
        elif kind == "Tensor" or (kind == "Optional[Tensor]" and value is not None):
            check_tensor(value, name)
        elif kind == "List[int]":
            check_list(value, name, "whole numbers")
            for index, number in enumerate(value):
                if not isinstance(number, Integral) or not -(2**63) <= number < 2**63:
                    raise TypeError(f"{name}[{index}] must be a whole number of 64 bits, found {number!r}")
