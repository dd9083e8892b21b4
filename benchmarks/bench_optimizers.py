"""adamw_ and sgd_ with the modulation folded in, against scaling first and torch's optimizers after it."""

from __future__ import annotations

import pytest
import torch
from harness import Memory, compare, few_rounds, random_tensor
from torch.optim.sgd import sgd as foreach_sgd

from cggm_ops import AdamSettings, Modulation, SGDSettings, adamw_, sgd_

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COEFFICIENTS = (0.99999, 1.00001, 0.99998, 1.00002) * 4
CASES = [  # tensors, elements, modalities
    (10, 100_000, 2),
    (200, 200_000, 2),
    (200, 200_000, 16),
    (1000, 5_000_000, 2),
    (200, 25_000_000, 2),
    (200, 100_000_000, 2),
]
each_case = pytest.mark.parametrize(("tensors", "elements", "modalities"), CASES)


def make(tensors, elements, dtype):
    torch.manual_seed(0)
    return [random_tensor(elements // tensors, DTYPES[dtype]).mul_(0.01) for _ in range(tensors)]


def scale_by_foreach(grads, modalities):
    """One call per modality, the coefficients on the host already."""
    for modality in range(modalities):
        torch._foreach_mul_(grads[modality::modalities], COEFFICIENTS[modality])


def scale_by_loop(grads, coefficients):
    """As the released scripts do: one parameter after the other, each with a tensor that the host reads."""
    for index, grad in enumerate(grads):
        grad *= coefficients[index % len(coefficients)].item()


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw(benchmark, dtype, tensors, elements, modalities):
    params, grads, exp_avgs, exp_avg_sqs = (make(tensors, elements, dtype) for _ in range(4))
    exp_avg_sqs = [tensor.abs() for tensor in exp_avg_sqs]
    steps = [torch.tensor(10.0) for _ in params]
    coefficients = torch.tensor(COEFFICIENTS[:modalities])
    modulation = Modulation(owner=[i % modalities for i in range(tensors)], grad_scale=coefficients)
    settings = AdamSettings(lr=1e-4, weight_decay=0.01)
    options = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8}

    def fused():
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params, grads, exp_avgs, exp_avg_sqs, [], steps, amsgrad=False, maximize=False, **options
        )

    def ours(modulation=modulation):
        state = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}
        adamw_(params, grads, **state, settings=settings, modulation=modulation)

    nbytes = sum(param.nbytes for param in params)
    compare(
        benchmark,
        ours,
        {
            "ours without modulation": lambda: ours(Modulation()),
            "fused without modulation": fused,
            "foreach mul + fused": lambda: (scale_by_foreach(grads, modalities), fused()),
            "loop + fused": lambda: (scale_by_loop(grads, coefficients), fused()),
        },
        memory=Memory(read=4 * nbytes, written=3 * nbytes),
        rounds=few_rounds(elements),
    )


@each_case
@pytest.mark.parametrize(("dtype", "momentum"), [("float32", 0.0), ("float32", 0.9), ("bfloat16", 0.9)])
def test_sgd(benchmark, dtype, momentum, tensors, elements, modalities):
    if elements == 100_000_000 and (dtype, momentum) != ("float32", 0.9):
        pytest.skip("the largest case once, for it takes seconds")
    params, grads, buffers = (make(tensors, elements, dtype) for _ in range(3))
    coefficients = torch.tensor(COEFFICIENTS[:modalities])
    modulation = Modulation(owner=[i % modalities for i in range(tensors)], grad_scale=coefficients)
    settings = SGDSettings(lr=1e-4, momentum=momentum)
    own = buffers if momentum else []
    options = {"lr": 1e-4, "momentum": momentum, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}

    # torch 2.12 and 2.13's fused kernel leaves parameters in half precision as they are (pytorch issue 191763)
    kind = "fused" if dtype == "float32" else "foreach"

    def plain():
        if kind == "fused":
            torch._fused_sgd_(params, grads, own, maximize=False, is_first_step=False, **options)
        else:
            foreach_sgd(params, grads, list(own), foreach=True, maximize=False, **options)

    nbytes = sum(param.nbytes for param in params)
    compare(
        benchmark,
        lambda: sgd_(params, grads, momentum_buffers=own, settings=settings, modulation=modulation),
        {
            f"{kind} without modulation": plain,
            f"foreach mul + {kind}": lambda: (scale_by_foreach(grads, modalities), plain()),
            f"loop + {kind}": lambda: (scale_by_loop(grads, coefficients), plain()),
        },
        memory=Memory(read=(3 if momentum else 2) * nbytes, written=(2 if momentum else 1) * nbytes),
        rounds=few_rounds(elements),
    )
