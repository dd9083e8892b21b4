"""Every implementation rejects invalid arguments of optimizer steps before it changes anything."""

import pytest
import torch
from cases import Implementation, each_implementation, random

from cggm_ops import AdamSettings, SGDSettings

SHARED = random(8)


def sgd_arguments(params, grads, buffers=None, owner=(), scale=None):
    momentum = 0.0 if buffers is None else 0.9
    return (
        params,
        grads,
        buffers or [],
        list(owner),
        scale,
        None,
        0.1,
        momentum,
        0.0,
        0.0,
        False,
        False,
        False,
    )


REFUSED = {
    "too few": (sgd_arguments([random(3)], []), "grads must hold one tensor per parameter"),
    "shape": (sgd_arguments([random(4)], [random(2, 2)]), r"grads\[0\] must have the shape"),
    "dtype": (sgd_arguments([random(4)], [random(4).double()]), r"grads\[0\] must have"),
    "strides": (
        sgd_arguments([random(4, 2)], [random(4, 2)], [random(2, 4).t()]),
        r"momentum_buffers\[0\] must have",
    ),
    "gaps": (sgd_arguments([SHARED[::2]], [random(4)]), "contiguous"),
    "shared": (
        sgd_arguments([SHARED[:4]], [random(4)], [SHARED[2:6]]),
        r"params\[0\] and momentum_buffers\[0\] must not share memory",
    ),
    "read": (sgd_arguments([SHARED[:4]], [SHARED[3:7]]), r"grads\[0\] shares memory with params\[0\]"),
    "owner": (
        sgd_arguments([SHARED], [random(8)], owner=[2], scale=torch.ones(2)),
        r"owner must lie in \[-1, 2\)",
    ),
    "owners": (
        sgd_arguments([SHARED], [random(8)], owner=[0, 0], scale=torch.ones(2)),
        "owner must name one modality",
    ),
    "scale": (sgd_arguments([SHARED], [random(8)], owner=[0], scale=torch.ones(2, 2)), "grad_scale must be"),
    "owners without scales": (
        sgd_arguments([SHARED], [random(8)], owner=[0, 0]),
        "owner must name one modality",
    ),
    "a scale that changes": (
        sgd_arguments([SHARED], [random(8)], owner=[0], scale=SHARED[2:4]),
        r"grad_scale shares memory with params\[0\]",
    ),
    "integers": (
        sgd_arguments([torch.ones(2, dtype=torch.int32)], [torch.ones(2, dtype=torch.int32)]),
        "must be float32, bfloat16",
    ),
}


@each_implementation
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(implementation, case):
    arguments, message = REFUSED[case]
    before = SHARED.clone()
    with pytest.raises(ValueError, match=message):
        implementation.ops.sgd_(*arguments)
    assert torch.equal(SHARED, before)


NUMBERS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def adamw(implementation, steps, device="cpu", **changed):
    lists = [[random(2, device=device) for _ in range(3)] for _ in range(4)]
    numbers = {**NUMBERS, **changed}.values()
    implementation.ops.adamw_(*lists, steps, [], None, None, *numbers, True, False)


def counters():
    return [torch.tensor(0.0) for _ in range(3)]


@each_implementation
def test_steps_are_single_numbers(implementation):
    steps = [torch.tensor(0.0), torch.ones(2), torch.tensor(0.0)]
    with pytest.raises(ValueError, match=r"steps\[1\] must be one float32 or float64 number"):
        adamw(implementation, steps)


@each_implementation
def test_a_counter_belongs_to_one_parameter(implementation):
    first, second = torch.tensor(0.0), torch.tensor(0.0)
    with pytest.raises(ValueError, match=r"steps\[0\] and steps\[2\] must not share memory"):
        adamw(implementation, [first, second, first])
    assert first.item() == second.item() == 0.0


@each_implementation
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("name", NUMBERS)
def test_hyper_parameters_of_adamw(implementation, name, value):
    steps = counters()
    with pytest.raises(ValueError, match=rf"{name} must be .*, found -?(nan|inf|0\.1)"):
        adamw(implementation, steps, **{name: value})
    assert steps == [0.0] * 3


@each_implementation
def test_a_beta_of_one(implementation):
    with pytest.raises(ValueError, match=r"beta2 must be in \[0, 1\), found 1"):
        adamw(implementation, counters(), beta2=1.0)


@each_implementation
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
def test_hyper_parameters_of_sgd(implementation, name, value):
    numbers = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, name: value}
    lists, before = [[random(3)] for _ in range(3)], random(3)
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        implementation.ops.sgd_(*lists, [], None, None, *numbers.values(), False, False, False)
    assert torch.equal(lists[0][0], before)
    with pytest.raises(ValueError, match=name):
        SGDSettings(**numbers)


def test_settings_of_adamw():
    with pytest.raises(ValueError, match=r"beta1 must be in \[0, 1\), found 1\.0"):
        AdamSettings(lr=0.1, betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="lr must be finite and not negative, found nan"):
        AdamSettings(lr=float("nan"))


def test_counters_beside_parameters_without_memory():
    with pytest.raises(ValueError, match=r"steps\[0\] must be on"):
        adamw(Implementation("fake", "meta", torch.ops.cggm_ops), counters(), device="meta")
