"""A bounded combiner limits the model's gradient norm to that of joint training at the same weights."""

import copy

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, NormEqualization
from helpers import NoHostSync, backward, batches, flat, needs_kernels, small_model, train, wrap

BOUNDED = NormEqualization(bounded=True)


def norm(gradients):
    return torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))


def own_gradients(model):
    own = set(model.unimodal_classifiers.parameters())
    return [p.grad.clone() for p in model.parameters() if p not in own]


def gradients(policy, **options):
    """Gradients of the model's own parameters after a step of SGD, which leaves them in `.grad`, and before it."""
    model = small_model()
    optimizer = wrap(model, policy=policy, fused=False, **options)
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    before = own_gradients(model)
    optimizer.step()
    return before, own_gradients(model), model


def test_the_gradient_is_shortened_to_the_length_of_joint_trainings():
    before, after, _ = gradients(BOUNDED)
    joint, _, _ = gradients(CGGM(), apply="feature")  # whose coefficients are 1 in the first step
    assert norm(before) > norm(joint) * 1.05
    torch.testing.assert_close(
        norm(after), norm(joint), rtol=0.1, atol=0
    )  # to first order: see the docstring
    ratio = norm(after) / norm(before)
    torch.testing.assert_close(after, [ratio * g for g in before])


def test_the_length_by_hand():
    """With one layer behind the features the share of the multimodal gradient is the same at the parameters."""
    before, after, model = gradients(BOUNDED)
    squares = {m: {} for m in model.modalities}
    twin = small_model()
    features = {}
    for m in twin.modalities:
        twin.encoders[m].register_forward_hook(lambda _m, _x, out, m=m: features.setdefault(m, out))
    optimizer = wrap(twin, policy=NormEqualization(), fused=False)
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(twin(*inputs), target)
    total = optimizer.balance(loss, target)
    for m in twin.modalities:
        (multimodal,) = torch.autograd.grad(loss, features[m], retain_graph=True)
        (combined,) = torch.autograd.grad(total, features[m], retain_graph=True)
        squares[m] = (multimodal.square().sum() / combined.square().sum()).item()
    joint = torch.zeros(())
    names = [name for name, _ in small_model().named_parameters()]
    for name, gradient in zip(names, before, strict=True):
        share = squares[name.split(".")[1]] if name.startswith("encoders.") else 1.0
        joint = joint + share * gradient.square().sum()
    torch.testing.assert_close(norm(after), joint.sqrt(), rtol=1e-4, atol=0)


def test_adam_is_left_alone_and_so_is_a_step_that_is_short_enough():
    results = []
    for policy in (NormEqualization(), BOUNDED):
        model = small_model()
        train(model, wrap(model, torch.optim.Adam(model.parameters(), lr=0.01), policy), steps=4)
        results.append(flat(model))
    assert torch.equal(*results)


@needs_kernels
@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_fused_steps_and_the_optimizers_own_agree(apply):
    results = []
    for fused in (True, False):
        model = small_model()
        optimizer = wrap(model, policy=BOUNDED + CGGM(smoothing=0.3), apply=apply, fused=fused)
        assert optimizer.uses_fused_step == fused
        train(model, optimizer, steps=6)
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_loss_scaling_changes_nothing():
    results = []
    for scale in (1.0, 4096.0):
        model = small_model()
        optimizer = wrap(model, policy=BOUNDED)
        scaler = torch.amp.GradScaler("cpu", enabled=scale > 1, init_scale=scale)
        for inputs, target in batches(4):
            optimizer.zero_grad()
            scaler.scale(optimizer.balance(F.cross_entropy(model(*inputs), target), target)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_the_smaller_of_two_limits_wins():
    for max_norm in (1e-3, 1e3):
        model = small_model()
        optimizer = wrap(model, policy=BOUNDED, fused=False)
        optimizer.max_norm = max_norm
        ((inputs, target),) = batches(1)
        backward(model, optimizer, inputs, target)
        optimizer.step()
        _, unclipped, _ = gradients(BOUNDED)
        expected = torch.minimum(torch.tensor(max_norm), norm(unclipped))
        torch.testing.assert_close(norm(own_gradients(model)), expected, rtol=1e-3, atol=1e-6)


def test_a_step_waits_for_nothing_and_a_copy_goes_on_alike():
    model = small_model()
    optimizer = wrap(model, policy=BOUNDED)
    train(model, optimizer, steps=2)
    twin_model, twin = copy.deepcopy((model, optimizer))
    ((inputs, target),) = batches(1, seed=5)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(*inputs), target)
    with NoHostSync():
        optimizer.balance(loss, target).backward()
        optimizer.step()
    train(twin_model, twin, steps=1, seed=5)
    torch.testing.assert_close(flat(model), flat(twin_model))


def test_under_torch_compile():
    results = []
    for compiled in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=BOUNDED)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        for inputs, target in batches(4):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_the_limit_by_hand():
    state = BOUNDED.initial_state(torch.zeros(2))
    limits = []
    for joint in (2.0, 4.0, 100.0, 0.5, float("inf"), 3.0):
        limit, state = BOUNDED.limit(torch.tensor(joint, dtype=torch.float64), state)
        limits.append(limit.item())
    # means 2, 3, then (3 + 3 + 9) / 3 = 5, then 5 + (.5 − 5) / 4 = 3.875, unchanged, and 3.875 + (3 − 3.875) / 5 = 3.7
    assert limits == [2.0, 4.0, 15.0, 3.875, pytest.approx(3 * 3.875), 3.7]
    assert state["steps"] == 5


def test_a_checkpoint_of_the_rule_without_bounds_loads_and_one_with_bounds_resumes_bit_for_bit():
    model = small_model()
    former = wrap(model, policy=NormEqualization())
    train(model, former, steps=2)
    saved = copy.deepcopy((model.state_dict(), former.state_dict()))
    model = small_model(seed=4)
    optimizer = wrap(model, policy=BOUNDED)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, steps=2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, steps=2, seed=8)
    again = small_model(seed=9)
    resumed = wrap(again, policy=BOUNDED)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(again, resumed, steps=2, seed=8)
    assert torch.equal(flat(again), flat(model))


@pytest.mark.parametrize("record", [False, True])
def test_a_backward_pass_that_makes_a_graph_of_itself(record):
    """`create_graph=True`, as for gradient penalties, changes no figure."""
    results = []
    for makes_graph in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=NormEqualization(bounded=True))
        optimizer.record = record
        ((inputs, target),) = batches(1)
        loss = F.cross_entropy(model(*inputs), target)
        optimizer.balance(loss, target).backward(create_graph=makes_graph)
        optimizer.step()
        results.append(flat(model).detach())
    assert torch.equal(*results)
