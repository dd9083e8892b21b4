"""The update rules that the kernels implement, Adam and SGD: how to read a group's options and take a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def _step_adam(
    base: Optimizer,
    settings: AdamSettings,
    params: list[Tensor],
    grads: list[Tensor],
    entries: list[Entry],
    modulate: Modulate,
) -> None:
    if not all(entries):  # some parameters are new
        make_adam_state(base)
        entries = [base.state[p] for p in params]
    adamw_(
        params,
        grads,
        exp_avgs=[e["exp_avg"] for e in entries],
        exp_avg_sqs=[e["exp_avg_sq"] for e in entries],
        steps=[e["step"] for e in entries],
        settings=settings,
        modulation=modulate(params),
    )


def _step_sgd(
    base: Optimizer,
    settings: SGDSettings,
    params: list[Tensor],
    grads: list[Tensor],
    entries: list[Entry],
    modulate: Modulate,
) -> None:
    if settings.momentum == 0:
        sgd_(params, grads, settings=settings, modulation=modulate(params))
        return
    found = [e.get("momentum_buffer") for e in entries]
    for first, part, gradients, buffers in partition([b is None for b in found], params, grads, found):
        momenta = [torch.empty_like(p) for p in part] if first else buffers
        sgd_(
            part,
            gradients,
            momentum_buffers=momenta,
            settings=settings,
            modulation=modulate(part),
            first=first,
        )
        if first:
            for parameter, momentum in zip(part, momenta, strict=True):
                base.state[parameter]["momentum_buffer"] = momentum


# For each optimizer: a function that converts its options for the kernels, and a function that takes a step.
RULES: dict[type[Optimizer], tuple[Callable[..., Any], Callable[..., None]]] = {
    AdamW: (partial(_adam_settings, decoupled=True), _step_adam),
    Adam: (_adam_settings, _step_adam),
    SGD: (_sgd_settings, _step_sgd),
}
