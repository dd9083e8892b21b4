"""What a refused call must leave as it was: everything that training reads or changes, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

REFUSALS = (ValueError, TypeError, RuntimeError)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def bits(value: Any) -> Any:
    """A tensor as its shape, dtype and bytes; everything else as it is."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        return value
    return (
        list(value.shape),
        value.dtype,
        value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
    )


def fingerprint(model: nn.Module, base: torch.optim.Optimizer) -> dict[str, Any]:
    """Values, gradients, buffers, modes and hooks of a model, and the groups and the state of its optimizer."""
    numbers = {p: i for i, p in enumerate(model.parameters())}
    return {
        "values": {name: (bits(p), p.requires_grad) for name, p in model.named_parameters()},
        "gradients": {name: bits(p.grad) for name, p in model.named_parameters()},
        "buffers": {name: bits(b) for name, b in model.named_buffers()},
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [[len(getattr(module, table)) for table in _HOOKS] for module in model.modules()],
        "groups": [
            {**group, "params": [numbers.get(p, "not the model's") for p in group["params"]]}
            for group in base.param_groups
        ],
        "state": [
            (numbers.get(p), {key: bits(value) for key, value in entry.items()})
            for p, entry in base.state.items()
        ],
    }


@contextmanager
def refused(model: nn.Module, base: torch.optim.Optimizer, words: str) -> Iterator[None]:
    """The block raises an error of the three kinds whose message matches, and changes nothing."""
    before = fingerprint(model, base)
    with pytest.raises(REFUSALS, match=words):
        yield
    after = fingerprint(model, base)
    for part, value in before.items():
        assert after[part] == value, part
