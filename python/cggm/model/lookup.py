"""Looks up the module inside wrappers, submodules by name, and the tensors that a loss depends on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..torch_private import child, uncompiled


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module behind DistributedDataParallel, DataParallel and `torch.compile`.

    >>> unwrap(nn.DataParallel(nn.Linear(2, 2)))
    Linear(in_features=2, out_features=2, bias=True)
    """
    while True:
        inner = uncompiled(model)
        if isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = inner.module
        if inner is model:
            return model
        model = inner


_WRAPPERS = re.compile(
    r"^((module|_orig_mod)\.)+"
)  # as in the names of DistributedDataParallel's or a compiled model


def find_module(model: nn.Module, module: str | nn.Module, argument: str) -> tuple[str, nn.Module]:
    """The dotted name and the module, given either; a name may start like those of a wrapped or compiled model.

    Raises:
        ValueError: no such submodule; close matches are suggested.
        TypeError: neither a name nor a module.
    """
    names = {name: found for name, found in model.named_modules() if name}
    if isinstance(module, str):
        module = module if module in names else _WRAPPERS.sub("", module)
        if module not in names:
            close = difflib.get_close_matches(module, names, n=3) or list(names)[:8]
            raise ValueError(
                f"{argument}: the model has no submodule {module!r}; did you mean one of {close}?"
            )
        return module, names[module]
    if isinstance(module, nn.Module):
        module = unwrap(module)
        for name, found in names.items():
            if found is module:
                return name, found
        raise ValueError(f"{argument}: this {type(module).__name__} is not a submodule of the model")
    raise TypeError(f"{argument} must be a dotted submodule name or a module, got {type(module).__name__}")


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The same as `model.get_submodule(path)` in a fifth of the time; every step calls it."""
    for name in path.split("."):
        model = child(model, name)
    return model


def reached(loss: Tensor, tensors: Sequence[Tensor]) -> set[Any]:
    """The autograd nodes of those tensors that the loss depends on.

    >>> import torch
    >>> used, other = (torch.ones(1, requires_grad=True) * 2 for _ in range(2))
    >>> reached(used.sum(), [used, other]) == {used.grad_fn}
    True
    """
    return reached_nodes(loss, {x.grad_fn for x in tensors})


def reached_nodes(loss: Tensor, wanted: set[Any]) -> set[Any]:
    """Those of the wanted autograd nodes that the loss depends on, not only through others of them."""
    found: set[Any] = set()
    seen = {loss.grad_fn}
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in wanted:
            found.add(node)
            continue
        new = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= new
        waiting += new
    return found
