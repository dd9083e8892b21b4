"""The unimodal classifiers in one kernel call, against running them as modules: losses and all gradients."""

from __future__ import annotations

import pytest
import torch
from harness import compare, few_rounds
from torch import nn
from torch.nn import functional as F

from cggm_ops import perceptrons


def classifiers(modalities, width, classes):
    return [
        nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        for _ in range(modalities)
    ]


def losses(modules, features, target):
    return sum(F.cross_entropy(module(x), target) for module, x in zip(modules, features, strict=True))


@pytest.mark.parametrize("modalities", [2, 4])
@pytest.mark.parametrize(("rows", "width"), [(64, 32), (64, 128), (64, 256), (32, 512)])
def test_perceptrons(benchmark, rows, width, modalities):
    """Ten classes; forward and backward of all classifiers, with the features' gradients."""
    torch.manual_seed(0)
    modules = classifiers(modalities, width, 10)
    networks = [list(module.parameters()) for module in modules]
    features = [torch.randn(rows, width, requires_grad=True) for _ in modules]
    target = torch.randint(10, (rows,))
    wanted = [*features, *(p for network in networks for p in network)]
    compiled = torch.compile(losses)

    def ours():
        total, _, _ = perceptrons(features, networks, target, rectified=[False] * modalities)
        return torch.autograd.grad(total, wanted)

    def differentiated(function):
        return lambda: torch.autograd.grad(function(modules, features, target), wanted)

    others = {"modules": differentiated(losses), "torch.compile": differentiated(compiled)}
    compare(benchmark, ours, others, rounds=few_rounds(modalities * rows * width * width))
