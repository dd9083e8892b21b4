"""The update rules that the kernels implement, Adam and SGD: how to read a group's options and take a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from cggm_ops import AdamSettings, Modulation, SGDSettings, adamw_, sgd_

from ..torch_private import make_adam_state

Entry = dict[str, Any]  # the optimizer's state of one parameter
Modulate = Callable[[list[Tensor]], Modulation]  # returns the scales of these parameters, all on one device

# Cached: constructing settings takes longer than using them.
_adam, _sgd = lru_cache(AdamSettings), lru_cache(SGDSettings)


def _adam_settings(group: dict[str, Any], decoupled: bool = False) -> AdamSettings:
    """Convert the options; where an older torch has none for `decoupled`, the optimizer's class decides."""
    first, second = group["betas"]
    return _adam(
        lr=float(group["lr"]),
        betas=(float(first), float(second)),
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        decoupled=bool(group.get("decoupled_weight_decay", decoupled)),
        maximize=bool(group["maximize"]),
    )


def _sgd_settings(group: dict[str, Any]) -> SGDSettings:
    return _sgd(
        lr=float(group["lr"]),
        momentum=float(group["momentum"]),
        dampening=float(group["dampening"]),
        weight_decay=float(group["weight_decay"]),
        nesterov=bool(group["nesterov"]),
        maximize=bool(group["maximize"]),
    )


def partition(kinds: list[Any], *lists: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Split parallel lists by kind: for each kind, yield it and the matching elements of every list."""
    distinct = dict.fromkeys(kinds)
    for kind in distinct:
        if len(distinct) == 1:
            yield kind, *lists
        else:
            places = [i for i, other in enumerate(kinds) if other == kind]
            yield kind, *([one[i] for i in places] for one in lists)


class Launch:
    """One kernel launch of a step. An interrupt leaves it to be called again; it launches once.

    Args:
        launch: calls the operator, which counts the version of its parameters up before it changes them.
        params: its parameters.
        entries: the states of the parameters that get `momenta`, new momentum buffers that the operator fills.
    """

    def __init__(
        self,
        launch: Callable[[], None],
        params: list[Tensor],
        entries: Sequence[Entry] = (),
        momenta: Sequence[Tensor] = (),
    ) -> None:
        self._launch = launch
        self._first = params[0]
        self._version = self._first._version
        self._new = list(zip(entries, momenta, strict=True))

    def __call__(self) -> None:
        """Launch if that has not been done, and give the optimizer its new buffers."""
        if self._first._version == self._version:
            self._launch()
        for entry, momentum in self._new:
            entry["momentum_buffer"] = momentum


def _adam_launches(
    base: Optimizer,
    settings: AdamSettings,
    params: list[Tensor],
    grads: list[Tensor],
    entries: list[Entry],
    modulate: Modulate,
) -> Iterator[Launch]:
    if not all(entries):  # some parameters are new
        make_adam_state(base)
        entries = [base.state[p] for p in params]
    states = {
        "exp_avgs": [e["exp_avg"] for e in entries],
        "exp_avg_sqs": [e["exp_avg_sq"] for e in entries],
        "steps": [e["step"] for e in entries],
    }
    options = {"settings": settings, "modulation": modulate(params)}
    yield Launch(partial(adamw_, params, grads, **states, **options), params)


def _sgd_launches(
    base: Optimizer,
    settings: SGDSettings,
    params: list[Tensor],
    grads: list[Tensor],
    entries: list[Entry],
    modulate: Modulate,
) -> Iterator[Launch]:
    if settings.momentum == 0:
        yield Launch(partial(sgd_, params, grads, settings=settings, modulation=modulate(params)), params)
        return
    found = [e.get("momentum_buffer") for e in entries]
    for first, part, gradients, buffers in partition([b is None for b in found], params, grads, found):
        momenta = [torch.empty_like(p) for p in part] if first else buffers
        options = {"settings": settings, "modulation": modulate(part), "first": first}
        launch = partial(sgd_, part, gradients, momentum_buffers=momenta, **options)
        yield Launch(launch, part, [base.state[p] for p in part] if first else (), momenta if first else ())


# For each optimizer: a function that converts its options for the kernels, and one that prepares its launches.
RULES: dict[type[Optimizer], tuple[Callable[..., Any], Callable[..., Iterator[Launch]]]] = {
    AdamW: (partial(_adam_settings, decoupled=True), _adam_launches),
    Adam: (_adam_settings, _adam_launches),
    SGD: (_sgd_settings, _sgd_launches),
}
