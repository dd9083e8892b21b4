"""Checkpoints: an ordinary optimizer state dict that also carries the classifiers and the policy's state.

Both travel as further entries in the `state` of the classifiers' parameters, where every tool that moves
optimizer checkpoints expects tensors, and not in the model's state dict, which stays that of the plain model.
Parameters of the model that serve as classifiers travel with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..model.classifiers import UnimodalClassifiers
from ..policies.base import State
from .checkpoint_checks import check_containers, check_groups, check_values, load_base
from .step_state import COMBINER

_VALUE = "unimodal_classifier"  # a classifier parameter's own value
_MODALITIES = (
    "modalities"  # their names, joined by commas, as bytes; in the state of the first classifier parameter
)
_POLICY = "policy."  # prefix of the policy's tensors, in the state of the first classifier parameter


def add_entries(
    state_dict: dict[str, Any], optimizer: Optimizer, classifiers: UnimodalClassifiers, policy: State
) -> None:
    """Write the classifiers' values and the policy's state into the state dict that `optimizer` just made."""
    keys = _keys(state_dict)
    places = _places(optimizer, classifiers)
    for place, (_, value) in zip(places, classifiers.own_parameters(), strict=True):
        state_dict["state"][keys[place]] = {
            **state_dict["state"].get(keys[place], {}),
            _VALUE: value.detach(),
        }
    names = torch.tensor(list(_names(classifiers).encode()), dtype=torch.uint8, device=value.device)
    first = state_dict["state"][keys[places[0]]]
    first |= {_MODALITIES: names} | {_POLICY + name: tensor for name, tensor in policy.items()}


def take_entries(
    state_dict: dict[str, Any],
    optimizer: Optimizer,
    classifiers: UnimodalClassifiers,
    expected: State,
    fresh: bool,
) -> tuple[dict[str, Any], list[Tensor] | None, State]:
    """Split a state dict into the wrapped optimizer's own, the classifiers' values and the policy's state.

    A plain optimizer's state dict, saved without a wrapper, gives None and `expected` for the last two.

    Args:
        state_dict: left alone.
        optimizer: the wrapped one.
        classifiers: the unimodal classifiers.
        expected: the policy's state before the first step, for its names and shapes.
        fresh: whether the width that a default classifier guessed may still change.

    Raises:
        TypeError, ValueError: a missing entry, or one that does not fit. Nothing has been changed then.
    """
    check_containers(state_dict)
    own = optimizer.param_groups[-1]
    fewer = len(state_dict["param_groups"]) == len(optimizer.param_groups) - 1
    if fewer and set(own["params"]) <= set(classifiers.parameters()) and not _holders(state_dict):
        plain = _with_group(state_dict, own)
        check_groups(plain["param_groups"], optimizer)
        return plain, None, expected
    check_groups(state_dict["param_groups"], optimizer)
    keys = _keys(state_dict)
    plain = {**state_dict, "state": dict(state_dict["state"])}
    values: list[Tensor] = []
    further: State = {}
    guessed = classifiers.guessed_weights() if fresh else set()
    for place, (name, parameter) in zip(
        _places(optimizer, classifiers), classifiers.own_parameters(), strict=True
    ):
        entry = plain["state"].pop(keys[place], {})
        if _VALUE not in entry:
            raise ValueError(
                f"state_dict has no {_VALUE!r} for the unimodal classifiers' parameter {name!r}: it was not saved "
                "by this wrapper with the same modalities and classifiers, or loaded with "
                "flatten_optimizer_state_dict=True, which drops it"
            )
        what = f"the unimodal classifiers' parameter {name!r}"
        check_values(what, entry[_VALUE], parameter, any_width=name in guessed)
        values.append(entry[_VALUE])
        ours = {k for k in entry if k in (_VALUE, _MODALITIES) or k.startswith(_POLICY)}
        further |= {k: entry[k] for k in ours}
        rest = {k: v for k, v in entry.items() if k not in ours}
        if rest:
            plain["state"][keys[place]] = rest
    _check_names(further.get(_MODALITIES), _names(classifiers))
    policy = {k.removeprefix(_POLICY): v for k, v in further.items() if k.startswith(_POLICY)}
    for name, initial in expected.items():
        if name.startswith(COMBINER):  # of a policy whose combiner had no state when this was saved
            policy.setdefault(name, initial)
    for name in sorted(expected.keys() | policy.keys()):
        if name not in expected or name not in policy:
            saved, here = (list(state[name].shape) if name in state else None for state in (policy, expected))
            raise ValueError(
                f"state_dict: {_POLICY + name!r} was saved as {saved}, but is {here} here (None: there is none); it "
                "was saved with another policy"
            )
    for name, tensor in expected.items():
        check_values(repr(_POLICY + name), policy[name], tensor)
    return plain, values, {name: tensor.to(expected[name].dtype) for name, tensor in policy.items()}


def _check_names(saved: Tensor | None, here: str) -> None:
    """Refuse other modalities, or another order of them: every `[M]` tensor of the policy is in that order."""
    if saved is None:  # an older version's
        return
    if not isinstance(saved, Tensor) or saved.dtype != torch.uint8 or saved.is_meta:
        raise TypeError(f"state_dict: {_MODALITIES!r} must be a tensor of bytes, got {saved!r}")
    there = bytes(saved.tolist()).decode(errors="replace")
    if there != here:
        raise ValueError(
            f"state_dict was saved with modalities {there.split(',')}, but they are {here.split(',')} here; pass "
            "encoders with the same names in the same order"
        )


def _names(classifiers: nn.Module) -> str:
    return ",".join(name for name, _ in classifiers.named_children())


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
def restore(
    optimizer: Optimizer,
    classifiers: UnimodalClassifiers,
    plain: dict[str, Any],
    values: Sequence[Tensor] | None,
    policy: State,
) -> State:
    """Load what `take_entries` returned; the classifiers' parameters stay the same objects.

    Returns:
        The policy's state.
    """
    own = [parameter for _, parameter in classifiers.own_parameters()]
    values = own if values is None else values
    wider = {p: p.new_empty(v.shape) for p, v in zip(own, values, strict=True) if p.shape != v.shape}
    state = {name: tensor.to(own[0].device, copy=True) for name, tensor in policy.items()}
    load_base(optimizer, plain, wider)
    for parameter, value in zip(own, values, strict=True):
        if parameter in wider:  # its width was a guess
            parameter.data = wider[parameter]
        parameter.copy_(value)
    return state


def _keys(state_dict: dict[str, Any]) -> list[Any]:
    return [key for group in state_dict["param_groups"] for key in group["params"]]


def _places(optimizer: Optimizer, classifiers: UnimodalClassifiers) -> list[int]:
    """Where the classifiers' parameters stand in the optimizer's groups, counted through all groups."""
    place = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return [place[p] for _, p in classifiers.own_parameters()]
