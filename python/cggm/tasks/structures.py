"""Tensors in nested structures: targets and outputs of tasks of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure of mappings, lists and tuples with the function applied to each tensor; the rest stays.

    >>> import torch
    >>> map_tensors(lambda x: x + 1, {"boxes": [torch.zeros(1)], "name": "a"})
    {'boxes': [tensor([1.])], 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, each) for each in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, each) for each in value)
    return value


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor with a sample axis in a structure of mappings, lists and tuples; None if there is none.

    >>> import torch
    >>> first_tensor({"text": None, "labels": (torch.zeros(()), torch.ones(2))})
    tensor([1., 1.])
    """
    if isinstance(value, Tensor):
        return value if value.ndim else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return None
    return next((found for each in value if (found := first_tensor(each)) is not None), None)
