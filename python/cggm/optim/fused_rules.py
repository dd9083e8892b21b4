"""The update rules that kernels know, Adam's and SGD's: a parameter group's options, and how a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from cggm_ops import AdamSettings, Modulation, SGDSettings, adamw_, sgd_

Entry = dict[str, Any]  # the optimizer's state of one parameter
Modulate = Callable[[list[Tensor]], Modulation]  # what applies to these parameters, all on one device

# Made anew they would take longer than all that is done with them. Plain numbers only, which never change.
_adam, _sgd = lru_cache(AdamSettings), lru_cache(SGDSettings)


def _adam_settings(group: dict[str, Any]) -> AdamSettings:
    first, second = group["betas"]
    return _adam(
        lr=float(group["lr"]),
        betas=(float(first), float(second)),
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        decoupled=bool(group["decoupled_weight_decay"]),
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


def split(kinds: list[Any], *lists: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Each kind, and of the lists what is of that kind."""
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
    if not all(entries):  # torch's own function creates the state of parameters that are new
        for group in base.param_groups:
            base._init_group(group, *([] for _ in range(6)))
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
    for first, part, gradients, buffers in split([b is None for b in found], params, grads, found):
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


# What the kernels make of a parameter group's options, and how they take a step.
RULES: dict[type[Optimizer], tuple[Callable[..., Any], Callable[..., None]]] = {
    AdamW: (_adam_settings, _step_adam),
    Adam: (_adam_settings, _step_adam),
    SGD: (_sgd_settings, _step_sgd),
}
