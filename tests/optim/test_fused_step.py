"""When a step is fused; hooks, scalers and copies work the same either way."""

import copy
from unittest import mock

import pytest
import torch
from test_fused_training import OPTIMIZERS, POLICY, assert_same_training, each_application, pair, prevent
from torch import nn
from torch.optim import optimizer as torch_optimizer

from cggm import UnimodalLosses
from cggm.optim import fused_rules as rules
from cggm.optim.fused import FusedStep
from helpers import backward, batches, flat, small_model, train, wrap

pytestmark = pytest.mark.skipif(
    wrap(small_model()).fused_step.unsupported_reason() is not None,
    reason="there are no compiled kernels here",
)


class Renamed(torch.optim.AdamW):
    pass


REFUSED = {
    "a subclass": (lambda p: Renamed(p), "Renamed is none of AdamW, Adam, SGD"),
    "another": (lambda p: torch.optim.RMSprop(p), "RMSprop is none of"),
    "amsgrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad=True"),
    "tensor betas": (
        lambda p: torch.optim.Adam(p, betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False),
        "betas are tensors",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_folded_is_stepped_by_the_optimizer_itself(case):
    make, reason = REFUSED[case]
    model = small_model()
    optimizer = wrap(model, make(model.parameters()), POLICY, apply="gradient")
    assert reason in optimizer.fused_step.unsupported_reason()
    before = flat(model)
    train(model, optimizer, steps=2)
    assert not torch.equal(flat(model), before)


def test_a_parameter_that_changes_its_layout_between_steps_is_seen():
    """`model.to(memory_format=...)` changes what is in a parameter and leaves the optimizer's state as it was."""
    model = small_model()
    optimizer = wrap(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), POLICY, apply="gradient"
    )
    train(model, optimizer, steps=3)
    weight = model.fusion.weight
    with torch.no_grad():
        weight.data = weight.data.t().contiguous().t()
    train(model, optimizer, steps=1)
    assert "momentum_buffer" in optimizer.fused_step.unsupported_reason()


def test_a_scheduler_of_the_base_is_seen():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.ConstantLR(base)
    optimizer = wrap(model, base, POLICY, apply="gradient")
    assert "made for the wrapped optimizer" in optimizer.fused_step.unsupported_reason()


def test_sparse_gradients_and_layouts_are_seen():
    model = small_model()
    optimizer = wrap(model, policy=POLICY, apply="gradient")
    weight = model.head.weight
    weight.grad = torch.eye(3, 8).to_sparse()
    assert "sparse" in optimizer.fused_step.unsupported_reason()
    weight.grad = None
    assert optimizer.uses_fused_step
    optimizer.base.state[weight]["momentum_buffer"] = torch.zeros(8, 3).t()
    optimizer.base.load_state_dict(optimizer.base.state_dict())  # new state objects are looked into again
    assert "other strides" in optimizer.fused_step.unsupported_reason()


@pytest.mark.parametrize(("name", "fused"), [("AdamW", False), ("AdamW, fused", True), ("SGD", True)])
def test_while_a_graph_is_captured_no_step_is_counted_on_the_host(name, fused):
    model = small_model()
    optimizer = wrap(model, OPTIMIZERS[name](model.parameters()), POLICY, apply="feature", fused=True)
    with mock.patch("cggm.optim.fused.capturing", return_value=True):
        assert optimizer.uses_fused_step == fused
    assert optimizer.uses_fused_step


@pytest.mark.parametrize(
    ("name", "kernel"), [("AdamW, tensor lr", "adamw_"), ("SGD", "sgd_"), ("SGD, momentum", "sgd_")]
)
def test_groups_of_equal_options_take_one_call(name, kernel):
    counts, runs = [], list(pair(OPTIMIZERS[name], "gradient"))
    for model, optimizer in runs:
        train(model, optimizer, steps=2)  # the second one no longer makes momentum buffers
        first, classifiers = optimizer.param_groups
        moved = [first["params"].pop() for _ in range(4)]
        optimizer.add_param_group({**{k: v for k, v in first.items() if k != "params"}, "params": moved})
        for rate, others in ((None, None), (0.02, None), (0.02, 0.02), (0.03, 0.02)):
            for group, lr in ((first, rate), (classifiers, others)):
                if lr is not None and isinstance(group["lr"], torch.Tensor):
                    group["lr"] = group["lr"].clone().fill_(lr)
                elif lr is not None:
                    group["lr"] = lr
            with mock.patch.object(rules, kernel, wraps=getattr(rules, kernel)) as call:
                train(model, optimizer, steps=1, seed=7)
            counts.append(call.call_count)
    assert counts == [1, 2, 2, 3, 0, 0, 0, 0]
    assert_same_training(*runs)


def test_fused_groups_stay_apart_for_their_counters_may_lie_on_the_device():
    model = small_model()
    groups = [{"params": [*model.encoders.parameters()], "fused": True}, {"params": model.head.parameters()}]
    optimizer = wrap(model, torch.optim.AdamW(groups), POLICY, apply="gradient")
    with mock.patch.object(rules, "adamw_", wraps=rules.adamw_) as call:
        train(model, optimizer, steps=1)
    assert call.call_count == 2


def test_a_rate_that_changes_in_place_is_read_anew():
    for fold in (True, False):
        model = small_model()
        rate = torch.tensor(0.1)
        optimizer = wrap(model, torch.optim.SGD(model.parameters(), lr=rate), POLICY, apply="gradient")
        train(model, optimizer, steps=2)
        if not fold:
            prevent(optimizer)
        rate.zero_()
        before = flat(model)
        train(model, optimizer, steps=1)
        assert torch.equal(flat(model), before)


def test_parameters_that_overlap_in_different_groups_are_left_to_the_wrapped_optimizer():
    memory = torch.randn(12)
    parts = [nn.Parameter(memory[:8]), nn.Parameter(memory[4:])]
    base = torch.optim.SGD([{"params": [part]} for part in parts], lr=0.1)
    for part in parts:
        part.grad = torch.ones(8)
    assert "share memory" in FusedStep(base).unsupported_reason()


def test_parameters_that_share_memory_are_stepped_by_the_optimizer_itself():
    model = small_model()
    model.fusion.bias = torch.nn.Parameter(model.fusion.bias.data)
    double = torch.nn.Parameter(model.fusion.bias.data)
    base = torch.optim.SGD([{"params": list(model.parameters())}, {"params": [double]}], lr=0.1)
    optimizer = wrap(model, base, POLICY, apply="gradient")
    assert "share memory" in optimizer.fused_step.unsupported_reason()
    train(model, optimizer, steps=2)
    double.data = double.data.clone()
    base.param_groups[1]["params"] = [
        torch.nn.Parameter(double.data)
    ]  # other parameters are looked into again
    assert optimizer.uses_fused_step


def test_the_profiler_sees_both_steps():
    model = small_model()
    optimizer = wrap(model, policy=POLICY, apply="gradient")
    train(model, optimizer, steps=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, steps=1)
    assert optimizer.uses_fused_step
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step#")]
    assert names == ["Optimizer.step#CGGMOptimizerWrapper.step", "Optimizer.step#SGD.step"]


def test_global_hooks_around_the_step():
    model = small_model()
    optimizer = wrap(model, policy=POLICY, apply="gradient")
    calls = []
    handle = torch_optimizer.register_optimizer_step_post_hook(
        lambda each, args, kwargs: calls.append((each, args))
    )
    try:
        train(model, optimizer, steps=1)
        assert optimizer.uses_fused_step
    finally:
        handle.remove()
    assert calls == [(optimizer.base, (optimizer.base,)), (optimizer, (optimizer,))]
    train(model, optimizer, steps=1)
    assert len(calls) == 2


def test_hooks_around_the_step():
    model = small_model()
    optimizer = wrap(model, policy=POLICY, apply="gradient")
    calls = []
    optimizer.base.register_step_post_hook(lambda base, args, kwargs: calls.append(base))
    optimizer.register_step_pre_hook(lambda wrapper, args, kwargs: calls.append(wrapper))
    train(model, optimizer, steps=1)
    assert optimizer.uses_fused_step
    assert calls == [optimizer, optimizer.base]


@each_application
def test_grad_scaler(apply):
    runs = list(pair(OPTIMIZERS["AdamW"], apply))
    for model, optimizer in runs:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step, (inputs, target) in enumerate(batches(6)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(*inputs), target)
            scaler.scale(optimizer.balance(loss, target)).backward()
            if step == 3:
                model.head.weight.grad.fill_(float("inf"))
            before = flat(model)
            scaler.step(optimizer)
            assert torch.equal(before, flat(model)) == (step == 3)
            scaler.update()
    assert_same_training(*runs)


@each_application
def test_a_copy_goes_on_alike(apply):
    model = small_model()
    optimizer = wrap(model, OPTIMIZERS["AdamW"](model.parameters()), POLICY, apply=apply)
    train(model, optimizer, steps=3)
    twin, its = copy.deepcopy((model, optimizer))
    for one, another in ((model, optimizer), (twin, its)):
        assert another.uses_fused_step
        train(one, another, steps=3, seed=6)
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    results = []
    for fold in (True, False):
        model = small_model().to(dtype)
        optimizer = wrap(model, OPTIMIZERS["AdamW, fused"](model.parameters()), POLICY, apply="gradient")
        if not fold:
            prevent(optimizer)
        for inputs, target in batches(4):
            optimizer.zero_grad()
            backward(model, optimizer, [x.to(dtype) for x in inputs], target)
            optimizer.step()
        results.append(flat(model))
        assert next(iter(optimizer.state.values()))["exp_avg"].dtype == dtype
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(*results, **tolerance)


def stepped(fused, apply, plain=False):
    """Parameters after training; with `plain` the wrapped optimizer's own step is called instead of the wrapper's."""
    model = small_model()
    torch.manual_seed(3)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = wrap(model, base, POLICY, apply=apply, fused=fused)
    for inputs, target in batches(4):
        optimizer.zero_grad()
        backward(model, optimizer, inputs, target)
        optimizer.modulate()
        if plain:
            base.step()
            optimizer._state.prepared_commit()()
        else:
            optimizer.step()
    return flat(model)


@pytest.mark.parametrize(("fused", "apply"), [("auto", "feature"), (False, "feature"), (False, "gradient")])
def test_where_nothing_is_folded_the_optimizers_own_step_runs_to_the_bit(fused, apply):
    optimizer = wrap(small_model(), policy=POLICY, apply=apply, fused=fused)
    assert not optimizer.uses_fused_step
    assert torch.equal(stepped(fused, apply), stepped(fused, apply, plain=True))


def test_with_fused_true_every_step_is_fused_and_one_that_cannot_be_is_refused():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses(), fused=True)
    assert optimizer.uses_fused_step
    with mock.patch.object(rules, "sgd_", wraps=rules.sgd_) as kernel:
        train(model, optimizer, steps=1)
    assert kernel.call_count
    model = small_model()
    optimizer = wrap(model, torch.optim.RMSprop(model.parameters()), fused=True)
    before = flat(model)
    with pytest.raises(RuntimeError, match=r"fused=True, but .* RMSprop is none of .*pass fused='auto'"):
        train(model, optimizer, steps=1)
    assert torch.equal(flat(model), before)
    with pytest.raises(TypeError, match="fused must be 'auto', True or False, got 'no'"):
        wrap(small_model(), fused="no")
