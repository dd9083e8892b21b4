"""Whole training steps: joint, balanced, and balanced like the released scripts."""

from __future__ import annotations

import pytest
import torch
from harness import compare
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, UnimodalLosses
from cggm.model.classifiers import UnimodalClassifier
from cggm_ops import scale_

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
}


class Model(nn.Module):
    """Encoders of `depth` layers, concatenation, a head."""

    def __init__(self, width: int, depth: int, modalities: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
            for _ in range(modalities)
        )
        self.head = nn.Linear(width * modalities, 10)

    def forward(self, *inputs):
        return self.head(torch.cat([e(x) for e, x in zip(self.encoders, inputs, strict=True)], 1))


def setup(width, depth, modalities=2, batch=16):
    torch.manual_seed(0)
    model = Model(width, depth, modalities)
    return model, [torch.randn(batch, width) for _ in range(modalities)], torch.randint(10, (batch,))


def joint(make, *shape):
    model, inputs, target = setup(*shape)
    optimizer = make(model.parameters())

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(*inputs), target).backward()
        optimizer.step()

    return step


def balanced(make, apply, *shape):
    model, inputs, target = setup(*shape)
    names = {f"m{i}": f"encoders.{i}" for i in range(len(model.encoders))}
    optimizer = CGGMOptimizerWrapper(
        make(model.parameters()), model, encoders=names, head="head", policy=CGGM(lam=0.0), apply=apply
    )

    def step():
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()

    return step


def scripted(make, *shape):
    """Return a step like those of the released scripts: scores on the host, and a loop over parameters."""
    model, inputs, target = setup(*shape)
    width = model.head.in_features // len(inputs)
    classifiers = nn.ModuleList(UnimodalClassifier(width, model.head) for _ in inputs)
    optimizer = make([*model.parameters(), *classifiers.parameters()])
    last = [0.0] * len(inputs)

    def step():
        optimizer.zero_grad()
        features = [e(x) for e, x in zip(model.encoders, inputs, strict=True)]
        outputs = [c(f.detach()) for c, f in zip(classifiers, features, strict=True)]
        loss = F.cross_entropy(model.head(torch.cat(features, 1)), target)
        (loss + sum(F.cross_entropy(output, target) for output in outputs)).backward()
        scores = [(output.argmax(1) == target).float().mean().item() for output in outputs]
        gains = [score - before for score, before in zip(scores, last, strict=True)]
        last[:] = scores
        coefficients = [(sum(gains) - gain) / (sum(gains) + 1e-8) for gain in gains]
        for name, parameter in model.named_parameters():
            for index, coefficient in enumerate(coefficients):
                if f"encoders.{index}." in name:
                    parameter.grad *= min(max(coefficient, 0.5), 2.0)
        optimizer.step()

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("width", "depth", "modalities"), [(64, 4, 2), (16, 50, 2), (64, 4, 16), (512, 4, 2)]
)
def test_step(benchmark, name, width, depth, modalities):
    """Compare with the wrapper's step with apply="gradient"."""
    make, shape = OPTIMIZERS[name], (width, depth, modalities)
    compare(
        benchmark,
        balanced(make, "gradient", *shape),
        {
            "joint": joint(make, *shape),
            "feature": balanced(make, "feature", *shape),
            "update": balanced(make, "update", *shape),
            "released scripts' structure": scripted(make, *shape),
        },
        rounds=11,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_host_time_of_the_optimizer_step(benchmark, name, apply):
    """Compare step() with the wrapped optimizer's own step on the same gradients, in 200 tiny tensors."""
    model, inputs, target = setup(8, 50)
    names = {"a": "encoders.0", "b": "encoders.1"}
    optimizer = CGGMOptimizerWrapper(
        OPTIMIZERS[name](model.parameters()),
        model,
        encoders=names,
        head="head",
        policy=CGGM(lam=0.0),
        apply=apply,
    )
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    kept = dict(vars(optimizer._state))

    def step():
        vars(optimizer._state).update(kept)  # repeat the same pending step; the gradients are still there
        optimizer.step()

    compare(benchmark, step, {"the base's own step": optimizer.base.step})


@pytest.mark.parametrize("policy", [CGGM(), UnimodalLosses()], ids=repr)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_own_host_time(benchmark, name, policy):
    """Compare the wrapper with unbalanced code written by hand, from the features on, in 200 tiny tensors.

    The encoders run in neither, so that the difference is the cost of `balance()`.
    """
    model, inputs, target = setup(8, 50)
    names = {"a": "encoders.0", "b": "encoders.1"}
    optimizer = CGGMOptimizerWrapper(
        OPTIMIZERS[name](model.parameters()), model, encoders=names, head="head", policy=policy
    )
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()  # now the policy has a state
    features = [e(x).detach().requires_grad_() for e, x in zip(model.encoders, inputs, strict=True)]
    used = [f.detach() for f in features] if optimizer._plan.detaches_features else features
    hooks = optimizer._model.encoders.hooks
    classifiers = list(model.unimodal_classifiers.children())
    kept = [(p, torch.randn_like(p)) for p in model.encoders.parameters()]

    def multimodal():
        optimizer.base.zero_grad()
        for parameter, gradient in kept:
            parameter.grad = gradient
        return F.cross_entropy(model.head(torch.cat(features, 1)), target)

    def balanced():
        loss = multimodal()
        for hook, each in zip(hooks, features, strict=True):
            hook.features, hook.modes = (each,), (True,)
        optimizer.balance(loss, target).backward()
        optimizer.step()

    def by_hand():
        loss = multimodal()
        outputs = [c(f) for c, f in zip(classifiers, used, strict=True)]
        (loss + sum(F.cross_entropy(output, target) for output in outputs)).backward()
        optimizer.base.step()

    compare(benchmark, balanced, {"by hand, nothing balanced": by_hand})


@pytest.mark.parametrize(("width", "depth"), [(16, 4), (512, 4)])
def test_inference(benchmark, width, depth):
    """Compare the forward pass of a wrapped model with that of a model that never was, both in evaluation mode."""
    plain, inputs, _ = setup(width, depth)
    model = setup(width, depth)[0]
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"a": "encoders.0", "b": "encoders.1"},
        head="head",
    )

    def forward(of: nn.Module) -> None:
        with torch.no_grad():
            of(*inputs)

    plain.eval()
    model.eval()
    compare(benchmark, lambda: forward(model), {"never wrapped": lambda: forward(plain)})
    optimizer.detach()


@pytest.mark.parametrize("apply", ["feature", "gradient"])
@pytest.mark.parametrize(("width", "depth"), [(16, 50), (256, 10), (512, 10)])
def test_modulation_alone(benchmark, apply, width, depth):
    """Compare the application of coefficients with a loop over parameters that reads them on the host."""
    model, _, _ = setup(width, depth)
    coefficients, owned = torch.tensor([0.99999, 1.00001]), []
    for index, encoder in enumerate(model.encoders):
        owned += [(parameter, index) for parameter in encoder.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    features = [torch.randn(16, width) for _ in range(2)]

    def loop():
        for name, parameter in model.named_parameters():
            for index in range(2):
                if f"encoders.{index}." in name:
                    parameter.grad *= coefficients[index].item()

    def at_the_features():
        for index, gradient in enumerate(features):
            gradient * coefficients[index]

    def on_gradients():
        scale_([p.grad for p, _ in owned], [i for _, i in owned], coefficients)

    compare(
        benchmark,
        at_the_features if apply == "feature" else on_gradients,
        {"loop over parameters": loop},
    )
