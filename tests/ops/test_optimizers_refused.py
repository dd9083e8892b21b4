"""Arguments of optimizer steps that every implementation refuses before it changes anything."""

import pytest
import torch
from cases import each_implementation, random

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


@each_implementation
def test_steps_are_single_numbers(implementation):
    lists = [[random(2) for _ in range(3)] for _ in range(4)]
    steps = [torch.tensor(0.0), torch.ones(2), torch.tensor(0.0)]
    with pytest.raises(ValueError, match=r"steps\[1\] must be one float32 or float64 number"):
        implementation.ops.adamw_(*lists, steps, [], None, None, 0.1, 0.9, 0.999, 1e-8, 0.0, True, False)
