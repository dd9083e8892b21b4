"""Checkpoints: an ordinary optimizer state dict that also carries the classifiers and the policy's state.

Both travel as further entries in the `state` of the classifiers' parameters, where every tool that moves
optimizer checkpoints expects tensors, and not in the model's state dict, which stays that of the plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .classifiers import GUESSED
from .policies.base import State

_VALUE = "unimodal_classifier"  # a classifier parameter's own value
_POLICY = "policy."  # prefix of the policy's tensors, in the state of the first classifier parameter


def add_entries(
    state_dict: dict[str, Any], optimizer: Optimizer, classifiers: nn.Module, policy: State
) -> None:
    """Write the classifiers' values and the policy's state into the state dict that `optimizer` just made."""
    keys = _keys(state_dict)
    places = _places(optimizer, classifiers)
    for place, value in zip(places, classifiers.parameters(), strict=True):
        state_dict["state"][keys[place]] = {
            **state_dict["state"].get(keys[place], {}),
            _VALUE: value.detach(),
        }
    state_dict["state"][keys[places[0]]] |= {_POLICY + name: tensor for name, tensor in policy.items()}


def take_entries(
    state_dict: dict[str, Any], optimizer: Optimizer, classifiers: nn.Module
) -> tuple[dict[str, Any], list[Tensor], State]:
    """Split a state dict into the wrapped optimizer's own, the classifiers' values and the policy's state.

    Raises:
        ValueError: a missing entry, named. Nothing has been changed then.
    """
    for field in ("state", "param_groups"):
        if field not in state_dict:
            raise ValueError(
                f"state_dict has no field {field!r}; pass what the optimizer's state_dict() returned"
            )
    keys = _keys(state_dict)
    plain = {**state_dict, "state": dict(state_dict["state"])}
    values: list[Tensor] = []
    policy: State = {}
    for place, (name, parameter) in zip(
        _places(optimizer, classifiers), classifiers.named_parameters(), strict=True
    ):
        entry = plain["state"].pop(keys[place], {}) if place < len(keys) else {}
        if not isinstance(entry.get(_VALUE), Tensor):
            raise ValueError(
                f"state_dict has no {_VALUE!r} for the unimodal classifiers' parameter {name!r}: it was not saved "
                "by this wrapper with the same modalities and classifiers"
            )
        if entry[_VALUE].shape != parameter.shape and not name.endswith(GUESSED):
            raise ValueError(
                f"state_dict: the unimodal classifiers' parameter {name!r} was saved as "
                f"{list(entry[_VALUE].shape)}, but is {list(parameter.shape)} here"
            )
        values.append(entry[_VALUE])
        policy |= {k.removeprefix(_POLICY): v for k, v in entry.items() if k.startswith(_POLICY)}
        rest = {k: v for k, v in entry.items() if k != _VALUE and not k.startswith(_POLICY)}
        if rest:
            plain["state"][keys[place]] = rest
    return plain, values, policy


@torch.no_grad()
def restore(classifiers: nn.Module, values: Sequence[Tensor], policy: State) -> State:
    """Copy saved values into the classifiers, whose parameters stay the same objects; returns the policy's state."""
    for parameter, value in zip(classifiers.parameters(), values, strict=True):
        if parameter.shape != value.shape:  # the width that a default classifier had guessed
            parameter.data = parameter.new_empty(value.shape)
        parameter.copy_(value)
    return {name: tensor.to(parameter.device, copy=True) for name, tensor in policy.items()}


def _keys(state_dict: dict[str, Any]) -> list[Any]:
    return [key for group in state_dict["param_groups"] for key in group["params"]]


def _places(optimizer: Optimizer, classifiers: nn.Module) -> list[int]:
    """Where the classifiers' parameters stand in the optimizer's groups, counted through all groups."""
    place = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return [place[p] for p in classifiers.parameters()]
