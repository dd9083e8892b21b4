"""Fused steps against the wrapped optimizer's own: the same parameters, the same state, for whoever is around them."""

import copy

import pytest
import torch
from torch import nn

from cggm import CGGM, CGGMOptimizerWrapper
from helpers import backward, batches, flat, small_model, train, wrap

POLICY = CGGM(smoothing=0.3, rho=1.3, lam=0.0)
ADAM = {"lr": 0.01, "weight_decay": 0.1}
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, **ADAM),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, **ADAM, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, **ADAM, fused=True),
    "AdamW, maximize": lambda p: torch.optim.AdamW(p, lr=1e-3, maximize=True),
    "AdamW, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "Adam": lambda p: torch.optim.Adam(p, **ADAM, betas=(0.5, 0.9), eps=1e-4),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "SGD, nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "SGD, maximize": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, maximize=True),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_application = pytest.mark.parametrize("apply", ["gradient", "update"])

pytestmark = pytest.mark.skipif(
    wrap(small_model()).fused_step.unsupported_reason() is not None,
    reason="there are no compiled kernels here",
)


def prevent(optimizer: CGGMOptimizerWrapper) -> None:
    """A hook before the base's step wants gradients as they are to be used: the base then takes its own step."""
    optimizer.base.register_step_pre_hook(lambda *_: None)
    assert not optimizer.uses_fused_step


def pair(make, apply, **options):
    """The same training fused and not: models and optimizers."""
    for fold in (True, False):
        model = small_model()
        optimizer = wrap(
            model, make(model.parameters()), POLICY, apply=apply, fused=fold or "auto", **options
        )
        if not fold:
            prevent(optimizer)
        assert optimizer.uses_fused_step == fold
        yield model, optimizer


def states(optimizer):
    return [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]


def assert_same_training(one, other):
    (model, optimizer), (plain, own) = one, other
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-4, atol=2e-6)
    for fused, torchs in zip(states(optimizer), states(own), strict=True):
        assert list(fused) == list(torchs)
        for name, value in torchs.items():
            assert fused[name].dtype == value.dtype
            assert fused[name].device == value.device
            assert fused[name].stride() == value.stride()
            torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=2e-6)


@each_application
@each_optimizer
def test_a_folded_step_is_that_of_torch_on_modulated_gradients(name, apply):
    runs = list(pair(OPTIMIZERS[name], apply))
    for model, optimizer in runs:
        train(model, optimizer, steps=6)
    assert_same_training(*runs)
    coefficients = runs[0][1].statistics["coefficients"]
    assert (coefficients - 1).abs().max() > 0.01  # there was something to fold in
    torch.testing.assert_close(coefficients, runs[1][1].statistics["coefficients"], rtol=1e-4, atol=1e-4)


def test_gradients_stay_as_backward_left_them():
    model = small_model()
    optimizer = wrap(model, policy=POLICY, apply="gradient")
    train(model, optimizer, steps=2)
    inputs, target = next(batches(1, seed=5))
    optimizer.zero_grad()
    backward(model, optimizer, inputs, target)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum"])
def test_modulating_by_hand_scales_gradients_once(name):
    runs = list(pair(OPTIMIZERS[name], "gradient"))
    for (model, optimizer), by_hand in zip(runs, (True, False), strict=True):
        for inputs, target in batches(5):
            optimizer.zero_grad()
            backward(model, optimizer, inputs, target)
            if by_hand:
                before = model.encoders["audio"][0].weight.grad.clone()
                optimizer.modulate()
                factor = optimizer.statistics["coefficients"][0]
                torch.testing.assert_close(model.encoders["audio"][0].weight.grad, factor * before)
            optimizer.step()
    assert_same_training(*runs)


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
@pytest.mark.parametrize("name", ["AdamW", "SGD, nesterov"])
def test_max_norm_clips_the_modulated_gradients_without_the_classifiers(name, apply):
    max_norm = 0.05
    runs = list(pair(OPTIMIZERS[name], apply))
    for (model, optimizer), clip_by_hand in zip(runs, (False, True), strict=True):
        own = set(model.unimodal_classifiers.parameters())
        clipped = [p for p in model.parameters() if p not in own]
        if not clip_by_hand:
            optimizer.max_norm = max_norm
        for inputs, target in batches(6):
            optimizer.zero_grad()
            backward(model, optimizer, inputs, target)
            if clip_by_hand:
                optimizer.modulate()
                assert torch.nn.utils.clip_grad_norm_(clipped, max_norm) > max_norm
            optimizer.step()
    assert_same_training(*runs)


def test_max_norm_where_nothing_is_folded():
    runs = list(pair(OPTIMIZERS["AdamW"], "gradient"))
    for _, optimizer in runs:
        optimizer.max_norm = 0.05
    for model, optimizer in runs:
        train(model, optimizer, steps=5)
    assert_same_training(*runs)
    with pytest.raises(ValueError, match="max_norm must be a positive number or None, got 0"):
        runs[0][1].max_norm = 0


@each_application
def test_several_groups_schedulers_and_missing_gradients(apply):
    def make(_):
        groups = [
            {"params": model.encoders.parameters(), "lr": 0.02, "weight_decay": 0.1},
            {"params": [*model.fusion.parameters(), *model.head.parameters()]},
        ]
        return torch.optim.AdamW(groups, lr=0.01)

    runs = []
    for fold in (True, False):
        model = small_model()
        optimizer = wrap(model, make(model), POLICY, apply=apply)
        if not fold:
            prevent(optimizer)
        model.encoders["image"][0].bias.requires_grad_(False)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        assert optimizer.uses_fused_step == fold
        for _ in range(3):
            train(model, optimizer, steps=2)
            scheduler.step()
        frozen = model.encoders["image"][0].bias
        assert frozen not in optimizer.state
        runs.append((model, optimizer))
    assert_same_training(*runs)


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum"])
def test_checkpoints_move_between_folded_and_plain(name):
    first = small_model()
    fused = wrap(first, OPTIMIZERS[name](first.parameters()), POLICY, apply="gradient")
    train(first, fused, steps=4)
    saved, weights = fused.state_dict(), copy.deepcopy(first.state_dict())
    ends = []
    for fold in (True, False):
        model = small_model(seed=3)
        optimizer = wrap(model, OPTIMIZERS[name](model.parameters()), POLICY, apply="gradient")
        if not fold:
            prevent(optimizer)
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(saved))
        train(model, optimizer, steps=4, seed=8)
        ends.append((model, optimizer))
    assert_same_training(*ends)


def test_parameters_added_later_get_their_first_step():
    runs = []
    for fold in (True, False):
        model = small_model()
        late = list(model.encoders["image"].parameters())
        early = [p for p in model.parameters() if all(p is not q for q in late)]
        optimizer = wrap(
            model, torch.optim.SGD(early, lr=0.1, momentum=0.9, dampening=0.5), POLICY, apply="gradient"
        )
        if not fold:
            prevent(optimizer)
        train(model, optimizer, steps=2)
        optimizer.add_param_group({"params": late})
        train(model, optimizer, steps=3, seed=4)
        runs.append((model, optimizer))
    assert_same_training(*runs)


@pytest.mark.parametrize("fused", [True, False])
def test_max_norm_clips_a_head_that_the_classifiers_share(fused):
    model = small_model()
    classifiers = {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), model.head) for m in model.modalities}
    optimizer = wrap(model, policy=POLICY, apply="gradient", classifiers=classifiers, fused=fused)
    optimizer.max_norm = 1e-3
    ((inputs, target),) = batches(1)
    before = flat(model)
    backward(model, optimizer, inputs, target)
    optimizer.step()
    travelled = torch.linalg.vector_norm(flat(model) - before)
    assert travelled <= 1.01 * 0.1 * 1e-3  # learning rate times norm
