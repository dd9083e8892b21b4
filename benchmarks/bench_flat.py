"""Gradients in flat buffers: their cost in a step, and what they save an operation on all gradients."""

from __future__ import annotations

import pytest
import torch
from bench_step import setup
from harness import compare
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-5, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(
        p, lr=1e-5
    ),  # has no fused step: the coefficients take a pass over memory
}
shapes = pytest.mark.parametrize(("width", "depth"), [(16, 250), (64, 50), (512, 10), (1024, 10)])


def wrapped(make, width, depth, flatten):
    model, inputs, target = setup(width, depth)
    optimizer = CGGMOptimizerWrapper(
        make(model.parameters()),
        model,
        encoders={"a": "encoders.0", "b": "encoders.1"},
        head="head",
        policy=CGGM(),
        apply="gradient",
    )
    if flatten:
        optimizer.flatten_gradients()

    def backward(set_to_none):
        optimizer.zero_grad(set_to_none=set_to_none)
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()

    return model, optimizer, backward


@pytest.mark.parametrize("name", OPTIMIZERS)
@shapes
def test_step_with_buffers(benchmark, name, width, depth):
    """Compare with a step whose buffers are zeroed."""

    def step(flatten, set_to_none):
        _, optimizer, backward = wrapped(OPTIMIZERS[name], width, depth, flatten)

        def step():
            backward(set_to_none)
            optimizer.step()

        return step

    alternatives = {"without buffers": step(False, True), "buffers, set_to_none": step(True, True)}
    compare(benchmark, step(True, False), alternatives, rounds=11)


@shapes
def test_norm_of_all_gradients(benchmark, width, depth):
    """Compare the norm of the buffer with torch's norm of a list."""
    model, optimizer, backward = wrapped(OPTIMIZERS["SGD"], width, depth, flatten=True)
    backward(set_to_none=True)
    (buffer,) = optimizer.gradient_buffers
    gradients = [p.grad for p in model.parameters()]
    compare(
        benchmark,
        lambda: torch.linalg.vector_norm(buffer),
        {"get_total_norm": lambda: torch.nn.utils.get_total_norm(gradients)},
    )
