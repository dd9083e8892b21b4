"""Errors in the middle of a step: nothing is lost, nothing is done twice, nothing is left half done in silence."""

import contextlib
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM
from cggm.model import coalitions
from cggm.optim import fused_rules, modulation, update_scaling
from cggm.policies import AGM, Coefficients, CoefficientUpdate
from helpers import backward, batches, flat, needs_kernels, small_model, train, wrap


class Tenth(Coefficients):
    """Coefficients of 0.1, so that an update that is not scaled is ten times too long."""

    def balance(self, scores, state):
        coefficients = torch.full_like(scores, 0.1)
        return CoefficientUpdate(coefficients, coefficients, state)


def fail(*_, **__):
    raise torch.OutOfMemoryError("injected")


def ready(apply, base=torch.optim.SGD, **options):
    """A model whose balanced loss has gone backward."""
    model = small_model()
    optimizer = wrap(model, base(model.parameters(), lr=0.1), Tenth(), apply=apply, **options)
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    return model, optimizer


def expected(apply, **options):
    model, optimizer = ready(apply, **options)
    optimizer.step()
    return flat(model)


@pytest.mark.parametrize("broken", ["replace", "_in_turn"])
def test_encoders_come_back_when_replacing_them_fails(broken):
    model = small_model()
    optimizer = wrap(model, policy=AGM())
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs), target)
    with mock.patch.object(coalitions, broken, side_effect=fail), pytest.raises(torch.OutOfMemoryError):
        optimizer.balance(loss, target)
    assert all("forward" not in encoder.__dict__ for encoder in model.encoders.values())
    assert not any(hook.passing for hook in optimizer._model.encoders.hooks)
    assert all(module.training for module in model.modules())
    optimizer.zero_grad()
    train(model, optimizer, steps=2)


@pytest.mark.parametrize(
    "options", [{"fused": False}, {"base": torch.optim.RMSprop}, pytest.param({}, marks=needs_kernels)]
)
@pytest.mark.parametrize("on", ["base", "wrapper"])
def test_a_post_hook_that_raises_finds_a_complete_step(on, options):
    model, optimizer = ready("update", **options)
    handle = (optimizer.base if on == "base" else optimizer).register_step_post_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert torch.equal(flat(model), expected("update", **options))
    assert optimizer._state.update is None
    if on == "base":
        with pytest.raises(
            RuntimeError,
            match=r"cannot be repeated: it is complete.* call zero_grad\(\) and go on with the next batch",
        ):
            optimizer.step()
    handle.remove()
    train(model, optimizer, steps=2, seed=4)
    twin, other = ready("update", **options)
    other.step()
    train(twin, other, steps=2, seed=4)
    assert torch.equal(flat(model), flat(twin))


def test_after_a_post_hook_that_raises_the_policy_has_its_new_state():
    states = []
    for broken in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(smoothing=0.3), apply="update")
        train(model, optimizer, steps=2)
        ((inputs, target),) = batches(1, seed=5)
        optimizer.zero_grad()
        backward(model, optimizer, inputs, target)
        if broken:
            optimizer.base.register_step_post_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                optimizer.step()
        else:
            optimizer.step()
        states.append((flat(model), optimizer._state.state))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@needs_kernels
def test_a_second_kernel_that_fails_is_launched_when_the_step_is_finished():
    """Two groups of settings take two launches; half an update is none."""
    results = []
    for broken in (False, True):
        model = small_model()
        groups = [
            {"params": list(model.encoders.parameters())},
            {"params": model.head.parameters(), "lr": 0.01},
        ]
        optimizer = wrap(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9), Tenth(), apply="update")
        ((inputs, target),) = batches(1)
        backward(model, optimizer, inputs, target)
        real, calls = fused_rules.sgd_, iter(["works", "fails"] if broken else [])

        def sometimes(*arguments, real=real, calls=calls, **options):
            return fail() if next(calls, None) == "fails" else real(*arguments, **options)

        with mock.patch.object(fused_rules, "sgd_", sometimes), contextlib.suppress(torch.OutOfMemoryError):
            optimizer.step()
        assert len(optimizer.base.param_groups) == 3
        results.append((flat(model), [s["momentum_buffer"] for s in optimizer.state.values()]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_memory_for_scaled_updates_is_had_before_the_step():
    model, optimizer = ready("update", fused=False)
    before = flat(model)
    short = mock.patch.object(update_scaling.torch, "empty_like", side_effect=fail)
    with short, pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert torch.equal(flat(model), before)


@needs_kernels
@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_a_fused_step_that_failed_is_not_repeated(apply):
    model, optimizer = ready(apply)
    before = flat(model)
    with mock.patch.object(fused_rules, "sgd_", side_effect=fail), pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    for again in (optimizer.step, optimizer.modulate):
        with pytest.raises(RuntimeError, match="cannot be repeated: the optimizer's step did not finish"):
            again()
    assert torch.equal(flat(model), before)
    optimizer.zero_grad()
    train(model, optimizer, steps=1, seed=4)
    twin, other = ready(apply)
    other.zero_grad()
    train(twin, other, steps=1, seed=4)
    assert torch.equal(flat(model), flat(twin))


def test_a_modulation_that_failed_is_not_repeated():
    model, optimizer = ready("gradient", fused=False)
    with mock.patch.object(modulation, "Statistics", side_effect=fail), pytest.raises(torch.OutOfMemoryError):
        optimizer.modulate()
    before = [p.grad.clone() for p in model.parameters()]
    for again in (optimizer.step, optimizer.modulate):
        with pytest.raises(RuntimeError, match=r"cannot be repeated: modulate\(\) did not finish"):
            again()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_a_pre_hook_that_raises_can_be_followed_by_the_step():
    model, optimizer = ready("gradient")
    handle = optimizer.base.register_step_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    handle.remove()
    optimizer.step()
    torch.testing.assert_close(flat(model), expected("gradient"))


def test_a_batch_that_was_balanced_and_skipped_counts_for_nothing():
    scores = []
    for skipped in (True, False):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(smoothing=0.3))
        train(model, optimizer, steps=2)
        if skipped:
            inputs, target = next(batches(1, seed=7))
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(model(*inputs), target) * float("nan"), target)
        train(model, optimizer, steps=1, seed=5)
        scores.append((optimizer.statistics["scores"], flat(model)))
    torch.testing.assert_close(scores[0], scores[1])


def test_counters_of_policies_go_on_in_a_half_precision_default():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for policy in (AGM(), CGGM()):
            assert policy.initial_state(torch.zeros(2))["steps"].dtype is torch.float32
        model = small_model()
        optimizer = wrap(model, policy=CGGM(), apply="gradient")
        optimizer.max_norm = 0.5
        optimizer.zero_grad()
        inputs = [torch.randn(8, w) for w in (8, 6)]
        target = torch.arange(8) % 3
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()
        assert all(torch.isfinite(p).all() for p in model.parameters())
    finally:
        torch.set_default_dtype(default)
