"""Other dtypes than float32, and models of which parts are frozen or have no parameters, with every policy."""

import pytest
import torch
from torch import nn

from cggm import CGGM
from cggm.policies import (
    AGM,
    DGL,
    OGMGE,
    FeaturePareto,
    MMPareto,
    ModalityDropout,
    NormEqualization,
    TCMax,
)
from helpers import backward, batches, flat, small_model, wrap

POLICIES = {
    "cggm": CGGM(),
    "rotation": CGGM(lam=0.2),
    "paper": CGGM.paper(),
    "released": CGGM.released(),
    "agm": AGM(),
    "tcmax": TCMax(weight=0.5),
    "mmpareto": MMPareto(),
    "feature pareto": FeaturePareto(),
    "default": NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6),
    "dgl": DGL(weight=4),
    "ogmge": OGMGE(),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def train(model, optimizer, dtype=torch.float32, steps=2):
    before = flat(model)
    for inputs, target in batches(steps):
        optimizer.zero_grad()
        loss = backward(model, optimizer, [x.to(dtype) for x in inputs], target)
        assert loss.isfinite()
        optimizer.step()
    after = flat(model)
    assert after.isfinite().all()
    assert not torch.equal(after, before)


@every_policy
def test_float64(policy):
    model = small_model().double()
    train(model, wrap(model, policy=policy), torch.float64)


@every_policy
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype(policy, dtype):
    torch.set_default_dtype(dtype)
    try:
        model = small_model()
        train(model, wrap(model, policy=policy), dtype)
    finally:
        torch.set_default_dtype(torch.float32)


@every_policy
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_converted_after_wrapping(policy, dtype):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    train(model, optimizer)
    train(model.to(dtype), optimizer, dtype)


def test_the_rotation_of_float64_is_that_of_float32():
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = small_model().to(dtype)
        torch.manual_seed(0)
        optimizer = wrap(model, policy=CGGM(lam=0.5))
        with torch.no_grad():
            for i, parameter in enumerate(model.unimodal_classifiers.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) / (i + 1))
        ((inputs, target),) = batches(1)
        backward(model, optimizer, [x.to(dtype) for x in inputs], target)
        before = model.head.weight.grad.clone()
        optimizer.modulate()
        assert not torch.equal(model.head.weight.grad, before)
        gradients.append(model.head.weight.grad.float())
    torch.testing.assert_close(*gradients)


@every_policy
def test_a_frozen_head(policy):
    model = small_model()
    model.head.requires_grad_(False)
    head = model.head.weight.clone()
    train(model, wrap(model, policy=policy))
    assert torch.equal(model.head.weight, head)


def test_a_frozen_head_that_a_direction_would_turn_is_said():
    model = small_model()
    model.head.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"head: the weight of 'head' is frozen.*no gradient to turn"):
        wrap(model, policy=CGGM(lam=0.1))


def test_scores_of_a_skipped_step_go_with_the_gradients_when_all_encoders_are_frozen():
    kept = []
    for skipped in (False, True):
        model = small_model()
        model.encoders.requires_grad_(False)
        with pytest.warns(UserWarning, match="frozen"):
            optimizer = wrap(model, policy=CGGM(smoothing=0.0))
        for number, (inputs, target) in enumerate(batches(2)):
            if number == 0 and not skipped:
                continue
            backward(model, optimizer, inputs, target)
            if number == 0:
                model.zero_grad()  # no step
        optimizer.step()
        kept.append(optimizer.statistics["scores"])
    torch.testing.assert_close(*kept)


@every_policy
def test_all_encoders_frozen(policy):
    model = small_model()
    model.encoders.requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen or has no parameters"):
        optimizer = wrap(model, policy=policy)
    frozen = flat(model.encoders)
    train(model, optimizer)
    assert torch.equal(flat(model.encoders), frozen)
    assert optimizer.statistics["scores"].shape == (2,)


class EarlyFusion(nn.Module):
    modalities = ("audio", "image")

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Identity(), "image": nn.Flatten()})
        self.fusion, self.head = nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, audio, image):
        joined = torch.cat([self.encoders["audio"](audio), self.encoders["image"](image)], 1)
        return self.head(self.fusion(joined).relu())


@every_policy
def test_encoders_without_parameters(policy):
    model = EarlyFusion()
    with pytest.warns(UserWarning, match="frozen or has no parameters") as caught:
        optimizer = wrap(model, policy=policy)
    assert len(caught) == 2
    train(model, optimizer)
    assert optimizer.statistics["scores"].shape == (2,)
