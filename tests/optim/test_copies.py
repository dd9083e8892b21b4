"""Copies of a model and of its wrapper, and a wrapper that goes without detach()."""

import copy
import gc
import io

import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from cggm.policies import (
    AGM,
    CGGM,
    DGL,
    MIMO,
    MLB,
    OGMGE,
    OPM,
    SMP,
    FeaturePareto,
    MMPareto,
    ModalityDropout,
    NormEqualization,
    Policy,
    TCMax,
    UnimodalLosses,
    default_policy,
)
from helpers import backward, batches, flat, small_model, train, wrap

DROPPING = UnimodalLosses() + ModalityDropout(0.5)


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_hooks_of_a_wrapper_that_is_gone_do_nothing():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base, DROPPING)
    train(model, optimizer, steps=2)
    del optimizer
    gc.collect()
    assert len(base.param_groups) == 1
    plain = small_model()
    plain.load_state_dict(model.state_dict())
    ((inputs, _),) = batches(1)
    assert torch.equal(model(*inputs), plain(*inputs))
    again = wrap(model, base, DROPPING)
    train(model, again, steps=1)
    again.detach()
    assert not hooks(model)


@pytest.mark.parametrize("policy", [DROPPING, AGM(), CGGM(lam=0.1, direction="gradient")], ids=repr)
def test_a_loss_that_is_kept_does_not_keep_the_wrapper(policy):
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base, policy)
    ((inputs, target),) = batches(1)
    kept = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
    del optimizer
    gc.collect()
    assert len(base.param_groups) == 1
    kept.backward()
    plain = small_model()
    assert torch.equal(model(*inputs), plain(*inputs))
    train(model, wrap(model, base, policy), steps=1)


def test_the_model_can_be_wrapped_again_at_once():
    model = small_model()
    optimizer = wrap(model)
    del optimizer
    train(model, wrap(model), steps=1)


def test_a_second_detach_does_nothing():
    model = small_model()
    first = wrap(model)
    first.detach()
    second = wrap(model)
    first.detach()
    assert hasattr(model, "unimodal_classifiers")
    train(model, second, steps=1)


@pytest.mark.parametrize("policy", [DROPPING, AGM()], ids=repr)
@pytest.mark.parametrize("how", ["deepcopy", "saved", "averaged"])
def test_a_copy_of_the_model_alone_is_plain_and_can_be_wrapped(policy, how):
    plain, model = small_model(), small_model()
    optimizer = wrap(model, policy=policy)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "averaged":
        averaged = AveragedModel(model, use_buffers=True)
        averaged.update_parameters(model)
        twin = averaged.module
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    ((inputs, target),) = batches(1)
    for each in (plain, twin):
        F.cross_entropy(each.train()(*inputs), target).backward()
    assert all(
        torch.equal(p.grad, dict(twin.named_parameters())[n].grad) for n, p in plain.named_parameters()
    )
    again = wrap(twin, policy=policy)
    train(twin, again, steps=2)
    again.detach()
    assert not hooks(twin)
    train(model, optimizer, steps=1)


@pytest.mark.parametrize("policy", [CGGM(), NormEqualization(bounded=True)], ids=repr)
def test_a_copy_made_in_the_middle_of_a_step_stands_between_two_steps(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    train(model, optimizer, steps=2)
    ((inputs, target),) = batches(1, seed=3)
    backward(model, optimizer, inputs, target)
    twin, its = copy.deepcopy((model, optimizer))
    before = flat(twin)
    its.step()
    assert torch.equal(flat(twin), before)
    backward(twin, its, inputs, target)  # without zero_grad() first
    its.step()
    optimizer.zero_grad()
    backward(model, optimizer, inputs, target)
    optimizer.step()
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize(
    "policy",
    [
        default_policy(),
        AGM(),
        CGGM(lam=0.1),
        CGGM.paper(1.0, 0.1),
        DGL(),
        FeaturePareto(),
        MMPareto(),
        OGMGE(),
        OPM(),
        SMP(stage_steps=1, epoch_steps=1),
        TCMax(),
        UnimodalLosses() + MIMO(),
        UnimodalLosses() + MLB(),
    ],
    ids=lambda policy: " + ".join(type(role).__name__ for role in Policy.of(policy).roles),
)
def test_the_first_steps_with_a_gradient_scaler_in_float16(policy):
    """No policy makes an infinity of its own, which would cost steps, and the scale does not change the step."""
    after = []
    for scale in (65536.0, 1.0):
        model = small_model()
        optimizer = wrap(model, policy=policy)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        torch.manual_seed(0)
        for inputs, target in batches(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(*inputs), target)
            scaler.scale(optimizer.balance(loss, target)).backward()
            before = flat(model)
            scaler.step(optimizer)
            scaler.update()
            assert not torch.equal(flat(model), before)
        assert scaler.get_scale() == scale
        after.append(flat(model))
    torch.testing.assert_close(*after, rtol=5e-3, atol=5e-4)
