"""Checks of the optimizer steps on any device: see kernel_checks.py."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import torch
from kernel_inputs import SIZES, compare, guarded, normal
from operator_cases import Call, Case, adamw, sgd

from cggm_ops import AdamSettings, Modulation, SGDSettings, reference


def modulations(case: Case) -> Iterator[Modulation]:
    """Yield no scales, one, and both, with strides and in float64."""
    owner, device = case.owner(), case.device
    grad_scale = torch.tensor([0.5, 1.7, -0.3], device=device)
    update_scale = torch.tensor([1.1, 9.0, 0.9, 9.0, 2.0, 9.0], dtype=torch.float64, device=device)[::2]
    yield Modulation()
    yield Modulation(owner=owner, grad_scale=grad_scale)
    yield Modulation(owner=owner, grad_scale=grad_scale, update_scale=update_scale)


def compare_step(call: Call) -> None:
    """Compare with float64. The terms are of the order of one, even if they cancel in a parameter."""
    compare(call, "optimizer step", terms=lambda wanted: 1 + wanted.abs())


def check_adamw(device: str, dtype: torch.dtype) -> None:
    """adamw_: both forms of weight decay, counters on the host and on the device."""
    for which, decoupled, place, many in itertools.product(
        range(3), (True, False), ("cpu", device), (False, True)
    ):
        case, guards = guarded(device, dtype)
        modulation = list(modulations(case))[which]
        settings = AdamSettings(lr=0.05, weight_decay=0.1, decoupled=decoupled, maximize=not decoupled)
        numbers = [float(index % 11 if many else 4) for index in range(len(SIZES))]
        steps = [torch.tensor(number, device=place) for number in numbers]
        compare_step(adamw(case, settings, modulation, steps))
        guards.check()
        assert [step.item() for step in steps] == [number + 1 for number in numbers], "steps"


def check_sgd(device: str, dtype: torch.dtype) -> None:
    """sgd_: with and without momentum, with Nesterov's, and a first step, whose buffers hold NaN."""
    rules = ((0.0, False, False), (0.9, False, False), (0.9, True, False), (0.9, False, True))
    for which, (momentum, nesterov, first) in itertools.product(range(3), rules):
        case, guards = guarded(device, dtype)
        settings = SGDSettings(
            lr=0.05, momentum=momentum, weight_decay=0.1, nesterov=nesterov, maximize=first
        )
        call = sgd(case, settings, list(modulations(case))[which], first)
        for buffer in call.changed[1] if first else ():
            buffer.fill_(float("nan"))
        compare_step(call)
        guards.check()


def special(device: str, dtype: torch.dtype, lists: int) -> Case:
    """Return a case of one tensor per list, with every combination of special values."""
    values = (0.0, 1.0, float("inf"), -float("inf"), float("nan"))
    rows = iter(torch.tensor([*itertools.product(values, repeat=lists)]).T.to(device, dtype))
    return Case((len(values) ** lists,), device=device, draw=lambda *_: next(rows).clone())


def check_special_steps(device: str, dtype: torch.dtype) -> None:
    """adamw_ and sgd_: infinite and NaN parameters, gradients and states, with and without weight decay."""
    for decay, flag in itertools.product((0.0, 0.1), (True, False)):
        adam = AdamSettings(lr=0.05, weight_decay=decay, decoupled=flag)
        with_momentum = SGDSettings(lr=0.05, weight_decay=decay, momentum=0.9, nesterov=flag)
        steps = [torch.zeros((), device=device)]
        for call in (
            adamw(special(device, dtype, 4), adam, Modulation(), steps),
            sgd(special(device, dtype, 3), with_momentum, Modulation()),
            sgd(special(device, dtype, 2), SGDSettings(lr=0.05, weight_decay=decay), Modulation()),
        ):
            copies = [[t.clone() for t in a] if isinstance(a, list) else a for a in call.arguments]
            getattr(reference, call.operator)(*copies)
            call.ours()
            torch.testing.assert_close(call.arguments[:4], tuple(copies[:4]), equal_nan=True)


def check_counters_on_host(library: str) -> None:
    """adamw_ on CUDA: counters on the host that alternate share launches."""
    host = ctypes.CDLL(library)
    on_host = ctypes.c_bool.in_dll(host, "counters_on_host")
    for different, most in ((2, 2), (20, 4)):
        case = Case((5,) * 1000, draw=normal)
        call = adamw(case, steps=[torch.tensor(float(index % different)) for index in range(1000)])
        before = host.launches()
        on_host.value = True
        compare_step(call)
        on_host.value = False
        assert host.launches() - before <= most, f"{host.launches() - before} launches"
        assert [t.item() for t in call.arguments[4]] == [index % different + 1 for index in range(1000)]


def check_many_params(device: str, dtype: torch.dtype) -> None:
    """adamw_ and sgd_ with more parameters than fit in one launch."""
    if dtype != torch.float32:
        return
    case = Case(tuple(3 + index % 5 for index in range(1100)), device=device, draw=normal)
    steps = [torch.tensor(float(index % 20)) for index in range(1100)]
    compare_step(adamw(case, AdamSettings(lr=0.05), Modulation(), steps))
    compare_step(sgd(case, SGDSettings(lr=0.5), Modulation()))
