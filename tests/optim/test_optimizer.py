"""The wrapper as an optimizer among others: schedulers, scaling, accumulation, checkpoints, copies, closures."""

import copy
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR

from cggm import CGGM, CGGMOptimizerWrapper, ClassifierScores, UnimodalLosses
from cggm.policies.plan import scale_targets
from helpers import BASES, NoHostSync, backward, batches, flat, small_model, train, wrap

POLICIES = [CGGM(lam=0.1), CGGM.paper(rho=1.0), CGGM.released(rho=1.0), UnimodalLosses()]


def test_is_an_optimizer_over_the_live_groups_and_state_of_the_wrapped_one():
    model = small_model()
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = wrap(model, base)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(model, optimizer, steps=1)
    assert optimizer.state is base.state
    base.load_state_dict(base.state_dict())  # replaces the lists
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults


def test_the_classifiers_have_a_group_of_their_own():
    model = small_model()
    optimizer = wrap(model, scores=ClassifierScores(lr=0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert set(optimizer.param_groups[1]["params"]) == set(model.unimodal_classifiers.parameters())


def test_named_parameters_stay_named():
    model = small_model()
    optimizer = wrap(model, torch.optim.SGD(model.named_parameters(), lr=0.1))
    assert optimizer.param_groups[1]["param_names"][0] == "unimodal_classifiers.audio.hidden.weight"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_optimizer_learns_with_every_policy(base, policy):
    model = small_model()
    parameters = list(model.parameters())
    optimizer = wrap(model, BASES[base](parameters), policy)
    losses = []
    for inputs, target in batches(150):
        optimizer.zero_grad()
        losses.append(backward(model, optimizer, inputs, target))
        optimizer.modulate()
        nn.utils.clip_grad_norm_(parameters, 0.8)
        optimizer.step()
    assert torch.stack(losses[-10:]).mean() < 0.98 * torch.stack(losses[:10]).mean()


def test_a_single_step_runs_the_wrapped_step_and_every_hook_once():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base)
    calls = []
    optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    base.register_step_post_hook(lambda *a: calls.append("base"))
    optimizer.register_state_dict_post_hook(lambda *a: calls.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda *a: calls.append("load"))
    train(model, optimizer, steps=1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "base", "post", "save", "load"]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, T_max=10),
        lambda o: SequentialLR(
            o, [LinearLR(o, 0.1, total_iters=3), CosineAnnealingLR(o, T_max=7)], milestones=[3]
        ),
        lambda o: ReduceLROnPlateau(o, patience=0),
    ],
    ids=["cosine", "warm-up chain", "plateau"],
)
def test_schedulers_before_and_after_loading(make):
    rates = []
    for wrapped in (False, True):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = wrap(model, optimizer) if wrapped else optimizer
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "The epoch parameter")  # SequentialLR of torch 2.6
            scheduler = make(optimizer)
            seen = []
            for step, (inputs, target) in enumerate(batches(6)):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(*inputs), target)
                (optimizer.balance(loss, target) if wrapped else loss).backward()
                optimizer.step()
                scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
                if step == 3:
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                seen.append(optimizer.param_groups[0]["lr"])
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2


@pytest.mark.parametrize("base", ["sgd", "fused adamw"])
@pytest.mark.parametrize("clears", ["optimizer", "model"])
@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_step_that_grad_scaler_skips_commits_nothing(base, clears, apply):
    results = []
    for with_overflow in (False, True):
        model = small_model()
        optimizer = wrap(model, BASES[base](model.parameters()), CGGM(smoothing=0.3), apply=apply)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000, backoff_factor=0.999999)
        for step, (inputs, target) in enumerate(batches(6)):
            if step == 3 and not with_overflow:
                continue
            (optimizer if clears == "optimizer" else model).zero_grad()
            loss = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
            before = flat(model)
            scaler.scale(loss).backward()
            if step == 3:
                model.fusion.weight.grad[0, 0] = torch.inf
            scaler.unscale_(optimizer)
            if clears == "model" and step != 3:
                optimizer.modulate()  # and then clip, as one would
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(flat(model), before) == (step == 3)
            assert torch.isfinite(flat(model)).all()
        results.append((flat(model), optimizer.statistics["coefficients"]))
    # the skipped step's backoff of the scale is undone again by unscaling: equal to rounding
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apply", ["gradient", "update"])
@pytest.mark.parametrize("policy", [CGGM(smoothing=0.3, lam=0.1), CGGM(score_kind="metric", smoothing=0.0)])
def test_micro_batches_equal_one_large_batch(policy, apply):
    results = []
    for parts in (1, 4):
        model = small_model()
        optimizer = wrap(model, policy=policy, apply=apply)
        for inputs, target in batches(5):
            optimizer.zero_grad()
            for part in range(parts):
                rows = slice(part * 32 // parts, (part + 1) * 32 // parts)
                loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows])
                (optimizer.balance(loss, target[rows]) / parts).backward()
            optimizer.step()
        results.append((flat(model), optimizer.statistics["scores"], optimizer.statistics["coefficients"]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_clearing_gradients_between_balance_and_backward_is_fine():
    results = []
    for late in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(smoothing=0.3))
        for inputs, target in batches(5):
            if not late:
                optimizer.zero_grad()
            loss = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
            if late:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_closure_is_the_same_as_the_plain_loop(apply):
    results = []
    for with_closure in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(smoothing=0.3), apply=apply)
        for inputs, target in batches(5):

            def closure(model=model, optimizer=optimizer, inputs=inputs, target=target):
                optimizer.zero_grad()
                return backward(model, optimizer, inputs, target)

            if with_closure:
                assert torch.is_tensor(optimizer.step(closure))
            else:
                closure()
                optimizer.step()
        results.append(flat(model))
    # With a closure the optimizer takes its own step; without one its rule is the kernel's, which rounds less often.
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


RESUME = """
import sys, torch
sys.path[:0] = [{tests!r}, {tests!r} + '/optim']
from helpers import *
from test_optimizer import POLICIES
torch.set_num_threads(1)
saved = torch.load({path!r})
model = small_model(seed=99)
if saved["model first"]:
    model.load_state_dict(saved["model"])
optimizer = wrap(model, BASES[saved["base"]](model.parameters()), POLICIES[saved["policy"]], apply=saved["apply"])
if not saved["model first"]:
    model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
train(model, optimizer, steps=4, seed=7)
torch.save({{"model": flat(model), "coefficients": optimizer.statistics["coefficients"]}}, {path!r})
"""


@pytest.mark.parametrize(
    ("base", "policy", "apply", "model_first"),
    [
        ("sgd", 0, "feature", False),
        ("adamw", 0, "update", True),
        ("sgd", 1, "gradient", True),
        ("fused adamw", 2, "gradient", False),
        ("sgd", 3, "feature", True),
    ],
)
def test_a_fresh_process_goes_on_bit_for_bit(base, policy, apply, model_first, tmp_path):
    model = small_model()
    optimizer = wrap(model, BASES[base](model.parameters()), POLICIES[policy], apply=apply)
    train(model, optimizer, steps=4)
    path = tmp_path / "checkpoint.pt"
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**saved, "base": base, "policy": policy, "apply": apply, "model first": model_first}, path)
    train(model, optimizer, steps=4, seed=7)
    code = RESUME.format(tests=str(Path(__file__).parents[1]), path=str(path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    resumed = torch.load(path)
    assert torch.equal(resumed["model"], flat(model))
    assert torch.equal(resumed["coefficients"], optimizer.statistics["coefficients"])


def test_the_models_own_state_dict_stays_that_of_the_plain_model():
    model, plain = small_model(), small_model(seed=3)
    wrap(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "head.weight"})


@pytest.mark.parametrize("spoil", ["no state", "no groups", "plain", "shape"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(spoil):
    model = small_model()
    optimizer = wrap(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    train(model, optimizer, steps=2)
    state = copy.deepcopy(optimizer.state_dict())
    last = state["param_groups"][-1]["params"][-1]
    if spoil == "no state":
        del state["state"]
    elif spoil == "no groups":
        del state["param_groups"]
    elif spoil == "plain":
        del state["state"][last]["unimodal_classifier"]
    else:
        state["state"][last]["unimodal_classifier"] = torch.zeros(7)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"state_dict.*('state'|'param_groups'|'image.output.bias')"):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_deepcopy_and_pickle_go_their_own_way():
    model = small_model()
    optimizer = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    CosineAnnealingLR(optimizer, T_max=10)  # replaces optimizer.step by a closure
    train(model, optimizer, steps=3)
    model(*next(batches(1))[0])  # features captured, never balanced
    for twin_model, twin in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        assert twin.base is not optimizer.base
        start = flat(model)
        train(twin_model, twin, steps=3, seed=5)
        assert torch.equal(flat(model), start)
        reference_model, reference = copy.deepcopy((model, optimizer))
        train(reference_model, reference, steps=3, seed=5)
        assert torch.equal(flat(twin_model), flat(reference_model))


def test_a_copied_model_alone_trains_plainly():
    model = small_model()
    wrap(model)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    ((inputs, target),) = batches(1)
    F.cross_entropy(twin(*inputs), target).backward()
    assert twin.head.weight.grad is not None
    assert model.head.weight.grad is None


def test_detach_leaves_the_model_as_it_came():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = wrap(model, base)
    train(model, optimizer, steps=2)
    optimizer.detach()
    assert not hasattr(model, "unimodal_classifiers")
    assert not any(module._forward_hooks for module in model.modules())
    assert len(base.param_groups) == 1
    assert set(base.state) == set(model.parameters())
    wrap(model, base)  # and it can be wrapped again


def test_parameters_added_later_are_modulated_too():
    model = small_model()
    optimizer = wrap(model, policy=CGGM(rho=0.0), apply="gradient")
    train(model, optimizer, steps=1)
    extra = nn.Linear(4, 4)
    model.encoders["audio"].append(extra)
    optimizer.add_param_group({"params": list(extra.parameters())})
    before = extra.weight.detach().clone()
    train(model, optimizer, steps=2)
    assert torch.equal(extra.weight, before)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_step_waits_for_no_device(policy, apply):
    model = small_model()
    if apply not in scale_targets(policy, adaptive=False):
        return
    optimizer = wrap(model, policy=policy, apply=apply)
    train(model, optimizer, steps=2)
    with NoHostSync():
        train(model, optimizer, steps=2)
        dict(optimizer.statistics)


def test_autocast():
    model = small_model()
    optimizer = wrap(model, policy=CGGM(lam=0.1))
    for inputs, target in batches(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(*inputs), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()
    assert torch.isfinite(flat(model)).all()


def test_a_bfloat16_model():
    model = small_model().bfloat16()
    optimizer = wrap(model, policy=CGGM(lam=0.1))
    for inputs, target in batches(3):
        optimizer.zero_grad()
        backward(model, optimizer, [x.bfloat16() for x in inputs], target)
        optimizer.step()
    assert torch.isfinite(flat(model)).all()
    assert optimizer.statistics["coefficients"].dtype == torch.float32


def test_the_wrapper_wraps_optimizers_alone():
    model = small_model()
    with pytest.raises(TypeError, match=r"optimizer must be a plain torch\.optim\.Optimizer, got list"):
        CGGMOptimizerWrapper([], model, encoders={"a": "encoders.audio", "b": "encoders.image"}, head="head")
    with pytest.raises(TypeError, match="got CGGMOptimizerWrapper"):
        wrap(small_model(), wrap(model))


def test_an_empty_micro_batch_leaves_the_scores_alone():
    model = small_model()
    optimizer = wrap(model, policy=CGGM(smoothing=0.3))
    train(model, optimizer, steps=2)
    ((inputs, target),) = batches(1, seed=3)
    coefficients = []
    for rows in (slice(None), slice(0)):
        loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows], reduction="sum")
        optimizer.balance(loss, target[rows]).backward()
        coefficients.append(optimizer._state.update.coefficients.clone())
    assert torch.isfinite(optimizer._state.scores).all()
    assert torch.equal(*coefficients)


def joint_steps(model, optimizer, steps):
    for inputs, target in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(*inputs), target).backward()
        optimizer.step()


def test_a_forgotten_balance_is_told_once_after_three_steps():
    model = small_model()
    optimizer = wrap(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joint_steps(model, optimizer, 2)
        train(model, optimizer, steps=1)
        joint_steps(model, optimizer, 2)
        optimizer.active = False
        joint_steps(model, optimizer, 5)
    optimizer.active = True
    with pytest.warns(
        UserWarning, match=r"ran in 3 steps without balance\(\).* optimizer.active = False"
    ) as told:
        joint_steps(model, optimizer, 8)
    assert len(told) == 1
