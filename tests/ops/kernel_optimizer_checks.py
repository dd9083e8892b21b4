"""Checks of the optimizer steps on any device: see kernel_checks.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from kernel_inputs import SIZES, Guarded, copies
from torch import Tensor

import cggm_ops
from tolerances import assert_elements


def step_inputs(device: str, dtype: torch.dtype) -> list[Guarded]:
    """Parameters, gradients and two states; the second state is not negative."""
    lists = [Guarded(SIZES, dtype, device) for _ in range(4)]
    for tensor in lists[3].tensors:
        tensor.abs_()
    return lists


def modulations(device: str) -> Iterator[cggm_ops.Modulation]:
    """No scales, one, and both, with strides and in float64."""
    owner = [index % 4 - 1 for index in range(len(SIZES))]
    grad_scale = torch.tensor([0.5, 1.7, -0.3], device=device)
    update_scale = torch.tensor([1.1, 9.0, 0.9, 9.0, 2.0, 9.0], dtype=torch.float64, device=device)[::2]
    yield cggm_ops.Modulation()
    yield cggm_ops.Modulation(owner=owner, grad_scale=grad_scale)
    yield cggm_ops.Modulation(owner=owner, grad_scale=grad_scale, update_scale=update_scale)


def compare_step(lists: list[Guarded], grads: list[Tensor], wanted: list[list[Tensor]]) -> None:
    """Compare lists after a step with the same step in float64 from the same start."""
    for index, (guarded, expected) in enumerate(zip(lists, wanted, strict=True)):
        guarded.check()
        for found, old, new in zip(guarded.tensors, grads, expected, strict=True):
            if index == 1:
                assert torch.equal(found, old), "the gradients changed"
                continue
            # Parameters, gradients and states are of the order of one, whatever is left of a parameter.
            assert_elements("optimizer step", found, new, terms=1 + new.abs())


def check_adamw(device: str, dtype: torch.dtype) -> None:
    """adamw_: both forms of weight decay, counters on the host and on the device."""
    for modulation, decoupled in itertools.product(modulations(device), (True, False)):
        settings = cggm_ops.AdamSettings(
            lr=0.05, weight_decay=0.1, decoupled=decoupled, maximize=not decoupled
        )
        for place, many in itertools.product(("cpu", device), (False, True)):
            lists = step_inputs(device, dtype)
            numbers = [float(index % 11 if many else 4) for index in range(len(SIZES))]
            steps = [torch.tensor(number, device=place) for number in numbers]
            grads = copies(lists[1].tensors)
            wanted = [copies(g.tensors, torch.float64) for g in lists]
            wide = [torch.tensor(number, dtype=torch.float64, device=place) for number in numbers]
            step_adamw(wanted, wide, settings, modulation, cggm_ops.schema.DEFINITIONS["adamw_"])
            step_adamw([g.tensors for g in lists], steps, settings, modulation, None)
            compare_step(lists, grads, wanted)
            assert [step.item() for step in steps] == [n + 1 for n in numbers], "steps"


def step_adamw(
    lists: list[list[Tensor]],
    steps: list[Tensor],
    settings: cggm_ops.AdamSettings,
    modulation: cggm_ops.Modulation,
    definition: Callable[..., None] | None,
) -> None:
    """One step by the public function, or by the definition."""
    params, grads, exp_avgs, exp_avg_sqs = lists
    if definition is None:
        states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}
        cggm_ops.adamw_(params, grads, **states, settings=settings, modulation=modulation)
        return
    m, s = modulation, settings
    scales = (list(m.owner), m.grad_scale, m.update_scale)
    numbers = (s.lr, *s.betas, s.eps, s.weight_decay, s.decoupled, s.maximize)
    definition(params, grads, exp_avgs, exp_avg_sqs, steps, *scales, *numbers)


def check_sgd(device: str, dtype: torch.dtype) -> None:
    """sgd_: with and without momentum, Nesterov's, and the first step, whose buffers hold NaN."""
    rules = ((0.0, False, False), (0.9, False, False), (0.9, True, False), (0.9, False, True))
    for modulation, (momentum, nesterov, first) in itertools.product(modulations(device), rules):
        lists = step_inputs(device, dtype)[:3]
        if first:
            for buffer in lists[2].tensors:
                buffer.fill_(float("nan"))
        settings = cggm_ops.SGDSettings(
            lr=0.05, momentum=momentum, weight_decay=0.1, nesterov=nesterov, maximize=first
        )
        grads = copies(lists[1].tensors)
        wanted = [copies(g.tensors, torch.float64) for g in lists]
        m = modulation
        scales = (list(m.owner), m.grad_scale, m.update_scale)
        numbers = (0.05, momentum, 0.0, 0.1, nesterov, first, first)
        cggm_ops.schema.DEFINITIONS["sgd_"](*wanted[:2], wanted[2] if momentum else [], *scales, *numbers)
        params, grads, buffers = (g.tensors for g in lists)
        cggm_ops.sgd_(
            params,
            grads,
            momentum_buffers=buffers if momentum else [],
            settings=settings,
            modulation=modulation,
            first=first,
        )
        compare_step(lists, grads, wanted)


def check_many_params(device: str, dtype: torch.dtype) -> None:
    """adamw_ and sgd_ over more parameters than one launch takes."""
    if dtype != torch.float32:
        return
    count = 1100
    start = [[torch.rand(3 + index % 5, device=device) for index in range(count)] for _ in range(4)]
    wanted = [copies(row, torch.float64) for row in start]
    settings, modulation = cggm_ops.AdamSettings(lr=0.05), cggm_ops.Modulation()
    definition = cggm_ops.schema.DEFINITIONS["adamw_"]
    step_adamw(wanted, [torch.tensor(float(i % 20)) for i in range(count)], settings, modulation, definition)
    steps = [torch.tensor(float(i % 20)) for i in range(count)]
    step_adamw(start, steps, settings, modulation, None)
    for found, new in zip(start[0] + start[2] + start[3], wanted[0] + wanted[2] + wanted[3], strict=True):
        assert_elements("optimizer step", found, new, terms=1 + new.abs())
    params = copies(start[0])
    cggm_ops.sgd_(params, start[1], momentum_buffers=[], settings=cggm_ops.SGDSettings(lr=0.5), first=False)
    for found, old, grad in zip(params, start[0], start[1], strict=True):  # a combination of two tensors
        old, change = old.double(), 0.5 * grad.double()
        assert_elements("combination", found, old - change, terms=old.abs() + change.abs())
