"""`flatten=True`: gradients in one buffer per dtype and device, and training as without it."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, UnimodalLosses
from cggm.policies import DGL, OGMGE, MMPareto, NormEqualization
from helpers import backward, batches, flat, in_buffers, small_model, train, wrap

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
STABLE = CGGM(smoothing=0.3)
CASES = [
    *((STABLE, apply) for apply in ("feature", "gradient", "update")),
    *((p, "auto") for p in (CGGM.paper(), UnimodalLosses(), DGL(), NormEqualization(), OGMGE(), MMPareto())),
]


def twins(policy=STABLE, base="sgd", **options):
    """Without and with buffers, otherwise alike."""
    models = [small_model(), small_model()]
    made = []
    for model, flatten in zip(models, (False, True), strict=True):
        torch.manual_seed(3)  # the classifiers'
        made.append(wrap(model, BASES[base](model.parameters()), policy, flatten=flatten, **options))
    return zip(models, made, strict=True)


def own_parameters(model):
    """The model's, modality by modality, the fusion's and the classifiers' last."""
    inside = [p for m in model.modalities for p in model.encoders[m].parameters()]
    return [*inside, *(p for p in model.parameters() if not any(p is i for i in inside))]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("policy", "apply"), CASES, ids=str)
def test_training_is_the_same_to_the_bit(policy, apply, base):
    results = []
    for model, optimizer in twins(policy, base, apply=apply):
        optimizer.max_norm = 5.0
        torch.manual_seed(5)  # of the noise
        train(model, optimizer, steps=6)
        results.append(flat(model))
    if isinstance(policy, CGGM) and apply == "gradient":  # the clipped norm is summed in another order
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "policy", [STABLE, MMPareto()], ids=str
)  # the latter makes gradients at the end of backward
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_views_in_order_after_every_backward(set_to_none, policy):
    (_, _), (model, optimizer) = twins(policy)
    (buffer,) = optimizer.gradient_buffers
    assert not buffer.any()
    for inputs, target in batches(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        backward(model, optimizer, inputs, target)
        grads = [p.grad for p in own_parameters(model)]
        assert all(g is not None for g in grads)
        assert in_buffers([buffer], own_parameters(model))
        places = [g.data_ptr() for g in grads]
        assert places == sorted(places), "modality by modality"
        assert all(place % 64 == buffer.data_ptr() % 64 for place in places)
        torch.testing.assert_close(buffer.square().sum(), sum(g.square().sum() for g in grads))
        assert optimizer.gradient_buffers[0] is buffer
        optimizer.step()


def test_statistics_are_those_without_buffers():
    measured = []
    for model, optimizer in twins(apply="gradient"):
        train(model, optimizer, steps=3)
        backward(model, optimizer, *next(batches(1, seed=8)))
        optimizer.modulate()
        names = ("coefficients", "cosines", "grad_norms")
        measured.append(torch.stack([optimizer.statistics[name] for name in names]))
    torch.testing.assert_close(*measured)


def test_one_operation_on_a_buffer_changes_every_gradient():
    (_, _), (model, optimizer) = twins()
    backward(model, optimizer, *next(batches(1)))
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.gradient_buffers[0].mul_(0.5)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, 0.5 * old)


def test_the_buffers_hold_the_gradients_as_they_are_when_read():
    (_, _), (model, optimizer) = twins()
    train(model, optimizer, steps=1)
    assert optimizer.gradient_buffers[0].any()
    optimizer.zero_grad()
    assert not optimizer.gradient_buffers[0].any()
    inputs, target = next(batches(1))
    F.cross_entropy(model(*inputs), target).backward()  # not balanced
    assert in_buffers(optimizer.gradient_buffers, model.parameters())


def test_gradients_accumulate_in_the_buffer():
    results = []
    for model, optimizer in twins():
        buffers = optimizer.gradient_buffers
        for inputs, target in batches(4):
            optimizer.zero_grad()
            for rows in (slice(0, 16), slice(16, 32)):
                loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows])
                (optimizer.balance(loss, target[rows]) / 2).backward()
                assert not buffers or in_buffers(buffers, model.parameters())
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


def test_a_parameter_without_a_gradient_keeps_none_and_zeros_in_the_buffer():
    (_, _), (model, optimizer) = twins(base="adamw")
    (buffer,) = optimizer.gradient_buffers
    unused = model.encoders["audio"][0].bias
    for frozen in (False, True, False, True):
        model.zero_grad()  # not the wrapper's own
        unused.requires_grad_(not frozen)
        before = unused.detach().clone()
        backward(model, optimizer, *next(batches(1)))
        assert (unused.grad is None) == frozen
        expected = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        torch.testing.assert_close(buffer.square().sum(), expected)  # nothing of the step before is left
        optimizer.step()
        assert torch.equal(unused, before) == frozen, "no weight decay without a gradient"
    assert optimizer.gradient_buffers[0] is buffer


def test_what_can_be_trained_later_gets_its_place_then():
    (_, _), (model, optimizer) = twins()
    model.encoders["image"].requires_grad_(False)
    train(model, optimizer, steps=2)
    (small,) = optimizer.gradient_buffers
    model.encoders["image"].requires_grad_(True)
    (large,) = optimizer.gradient_buffers
    assert large.numel() > small.numel()
    train(model, optimizer, steps=2)
    assert in_buffers([large], model.parameters())


def test_gradients_that_others_put_there_are_gathered_before_the_step():
    (_, _), (model, optimizer) = twins(apply="gradient")
    buffers = optimizer.gradient_buffers
    backward(model, optimizer, *next(batches(1)))
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()
    assert not in_buffers(buffers, model.parameters())
    optimizer.modulate()
    assert in_buffers(buffers, model.parameters())


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copies_have_buffers_of_their_own(copied):
    (_, _), (model, optimizer) = twins()
    train(model, optimizer, steps=2)
    one = (model, optimizer)
    other, its = copy.deepcopy(one) if copied == "deepcopy" else pickle.loads(pickle.dumps(one))
    for each, wrapper in ((model, optimizer), (other, its)):
        train(each, wrapper, steps=2, seed=4)
        assert in_buffers(wrapper.gradient_buffers, each.parameters())
    assert torch.equal(flat(model), flat(other))
    assert not in_buffers(its.gradient_buffers, model.parameters())
