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

from ..model.classifiers import GUESSED
from ..policies.base import State
from .step_state import COMBINER

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
    state_dict: dict[str, Any], optimizer: Optimizer, classifiers: nn.Module, expected: State
) -> tuple[dict[str, Any], list[Tensor] | None, State]:
    """Split a state dict into the wrapped optimizer's own, the classifiers' values and the policy's state.

    A plain optimizer's state dict, saved without a wrapper, gives None and `expected` for the last two.

    Args:
        state_dict: left alone.
        optimizer: the wrapped one.
        classifiers: the unimodal classifiers.
        expected: the policy's state before the first step, for its names and shapes.

    Raises:
        ValueError: a missing or misshapen entry. Nothing has been changed then.
    """
    for field in ("state", "param_groups"):
        if field not in state_dict:
            raise ValueError(
                f"state_dict has no field {field!r}; pass what the optimizer's state_dict() returned"
            )
    own = optimizer.param_groups[-1]
    fewer = len(state_dict["param_groups"]) == len(optimizer.param_groups) - 1
    if fewer and set(own["params"]) <= set(classifiers.parameters()) and not _holders(state_dict):
        return _with_group(state_dict, own), None, expected
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
                "by this wrapper with the same modalities and classifiers, or loaded with "
                "flatten_optimizer_state_dict=True, which drops it"
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
    for name, fresh in expected.items():
        if name.startswith(COMBINER):  # of a policy whose combiner had no state when this was saved
            policy.setdefault(name, fresh)
    for name in sorted(expected.keys() | policy.keys()):
        saved, here = (list(state[name].shape) if name in state else None for state in (policy, expected))
        if saved != here:
            raise ValueError(
                f"state_dict: {_POLICY + name!r} was saved as {saved}, but is {here} here (None: there is none); it "
                "was saved with another policy or other modalities"
            )
    return plain, values, {name: tensor.to(expected[name].dtype) for name, tensor in policy.items()}


def plain_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict that the wrapped optimizer would have without the wrapper, to go on without it.

    Args:
        state_dict: what the wrapper's `state_dict()` returned, read from a file perhaps; left alone.

    >>> wrapped = {"state": {0: {"step": 1}, 1: {"unimodal_classifier": torch.ones(2)}},
    ...            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.1, "params": [1]}]}
    >>> plain_state_dict(wrapped)
    {'state': {0: {'step': 1}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
    """
    own = _holders(state_dict)
    groups = [g | {"params": [k for k in g["params"] if k not in own]} for g in state_dict["param_groups"]]
    state = {key: entry for key, entry in state_dict["state"].items() if key not in own}
    return {**state_dict, "state": state, "param_groups": [group for group in groups if group["params"]]}


def _holders(state_dict: dict[str, Any]) -> set[Any]:
    """Keys of the classifiers' parameters."""
    return {key for key, entry in state_dict["state"].items() if _VALUE in entry}


def _with_group(state_dict: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """A plain optimizer's state dict and a group of further parameters, without state."""
    first = sum(len(g["params"]) for g in state_dict["param_groups"])
    added = group | {"params": list(range(first, first + len(group["params"])))}
    return {**state_dict, "param_groups": [*state_dict["param_groups"], added]}


@torch.no_grad()
def restore(classifiers: nn.Module, values: Sequence[Tensor] | None, policy: State) -> State:
    """Copy saved values into the classifiers, whose parameters stay the same objects; returns the policy's state."""
    own = list(classifiers.parameters())
    for parameter, value in zip(own, own if values is None else values, strict=True):
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
