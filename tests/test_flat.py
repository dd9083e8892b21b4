"""`flatten=True`: gradients in one buffer per dtype and device, and training as without it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, UnimodalLosses
from cggm.policies import DGL, OGMGE, MMPareto, NormEqualization
from helpers import CLASSES, WIDTHS, backward, batches, flat, in_buffers, small_model, train, wrap

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


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_views_in_order_after_every_backward(set_to_none):
    (_, _), (model, optimizer) = twins()
    assert optimizer.gradient_buffers == ()
    buffer = None
    for inputs, target in batches(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        backward(model, optimizer, inputs, target)
        grads = [p.grad for p in own_parameters(model)]
        assert all(g is not None for g in grads)
        assert in_buffers(optimizer, own_parameters(model))
        places = [g.data_ptr() for g in grads]
        assert places == sorted(places), "modality by modality"
        assert buffer is None or optimizer.gradient_buffers[0] is buffer, "made once"
        (buffer,) = optimizer.gradient_buffers
        assert all(place % 64 == buffer.data_ptr() % 64 for place in places)
        torch.testing.assert_close(buffer.square().sum(), sum(g.square().sum() for g in grads))
        optimizer.step()


def test_statistics_are_those_without_buffers():
    measured = []
    for model, optimizer in twins(apply="gradient"):
        train(model, optimizer, steps=3)
        backward(model, optimizer, *next(batches(1, seed=8)))
        optimizer.modulate()
        measured.append(
            torch.stack([optimizer.statistics[n] for n in ("coefficients", "cosines", "grad_norms")])
        )
    torch.testing.assert_close(*measured)


def test_one_operation_on_a_buffer_changes_every_gradient():
    (_, _), (model, optimizer) = twins()
    backward(model, optimizer, *next(batches(1)))
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.gradient_buffers[0].mul_(0.5)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, 0.5 * old)


def test_gradients_accumulate_in_the_buffer():
    results = []
    for model, optimizer in twins():
        for inputs, target in batches(4):
            optimizer.zero_grad()
            for rows in (slice(0, 16), slice(16, 32)):
                loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows])
                (optimizer.balance(loss, target[rows]) / 2).backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)
    assert in_buffers(optimizer, model.parameters())


def test_a_parameter_without_a_gradient_keeps_none_and_zeros_in_the_buffer():
    (_, _), (model, optimizer) = twins(base="adamw")
    unused = model.encoders["audio"][0].bias
    backward(model, optimizer, *next(batches(1)))
    sizes = optimizer.gradient_buffers[0].numel()
    for frozen in (True, False, True):
        optimizer.step()
        model.zero_grad()  # not the wrapper's own
        unused.requires_grad_(not frozen)
        before = unused.detach().clone()
        backward(model, optimizer, *next(batches(1)))
        (buffer,) = optimizer.gradient_buffers
        assert (unused.grad is None) == frozen
        expected = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        torch.testing.assert_close(buffer.square().sum(), expected)  # nothing of the step before is left
        optimizer.step()
        assert torch.equal(unused, before) == frozen, "no weight decay without a gradient"
    assert buffer.numel() == sizes


def test_a_parameter_gets_its_place_with_its_first_gradient():
    (_, _), (model, optimizer) = twins()
    model.encoders["image"].requires_grad_(False)
    train(model, optimizer, steps=2)
    (small,) = optimizer.gradient_buffers
    model.encoders["image"].requires_grad_(True)
    train(model, optimizer, steps=2)
    (large,) = optimizer.gradient_buffers
    assert large.numel() > small.numel()
    assert in_buffers(optimizer, model.parameters())


def test_gradients_that_others_put_there_are_gathered_before_the_step():
    (_, _), (model, optimizer) = twins(apply="gradient")
    backward(model, optimizer, *next(batches(1)))
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()
    assert not in_buffers(optimizer, model.parameters())
    optimizer.modulate()
    assert in_buffers(optimizer, model.parameters())


class Mixed(nn.Module):
    """An encoder of channels-last convolutions in float64, and one in float32."""

    modalities = ("audio", "image")

    def __init__(self):
        super().__init__()
        convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.encoders = nn.ModuleDict({"audio": nn.Linear(WIDTHS["audio"], 4), "image": convolution.double()})
        self.encoders["image"].to(memory_format=torch.channels_last)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, audio, image):
        return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["image"](image).float()], 1))


def test_every_dtype_has_a_buffer_and_every_gradient_its_order_of_elements():
    torch.manual_seed(0)
    model = Mixed()
    optimizer = wrap(model, flatten=True, classifiers={"audio": 4, "image": 4})
    image = torch.randn(5, 3, 6, 6).double().to(memory_format=torch.channels_last)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, optimizer, [torch.randn(5, 8), image], torch.randint(CLASSES, (5,)))
        weight = model.encoders["image"][0].weight
        assert weight.grad.stride() == weight.stride() == (27, 1, 9, 3)
        assert {b.dtype for b in optimizer.gradient_buffers} == {torch.float32, torch.float64}
        assert in_buffers(optimizer, model.parameters())
        optimizer.step()


def test_buffers_follow_a_model_that_is_converted():
    (_, _), (model, optimizer) = twins(apply="gradient")
    inputs, target = next(batches(1))
    backward(model, optimizer, inputs, target)
    optimizer.step()
    model.double()  # converts the gradients that are there as well
    backward(model, optimizer, [x.double() for x in inputs], target)
    (buffer,) = optimizer.gradient_buffers
    assert buffer.dtype == torch.float64
    assert in_buffers(optimizer, model.parameters())
    assert not torch.equal(buffer, torch.zeros_like(buffer))


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copies_have_buffers_of_their_own(copied):
    (_, _), (model, optimizer) = twins()
    train(model, optimizer, steps=2)
    if copied == "deepcopy":
        other, its = copy.deepcopy((model, optimizer))
    else:
        stream = io.BytesIO(pickle.dumps((model, optimizer)))
        other, its = pickle.load(stream)
    for each, one in ((model, optimizer), (other, its)):
        train(each, one, steps=2, seed=4)
        assert in_buffers(one, each.parameters())
    assert torch.equal(flat(model), flat(other))
    assert not in_buffers(its, model.parameters())


def test_a_sparse_gradient_is_refused_and_nothing_has_moved():
    class Words(nn.Module):
        modalities = ("audio", "image")

        def __init__(self):
            super().__init__()
            words = nn.EmbeddingBag(10, 4, sparse=True)
            self.encoders = nn.ModuleDict({"audio": nn.Linear(8, 4), "image": words})
            self.head = nn.Linear(8, CLASSES)

        def forward(self, audio, image):
            return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["image"](image)], 1))

    model = Words()
    optimizer = wrap(model, flatten=True, classifiers={"audio": 4, "image": 4})
    with pytest.raises(RuntimeError, match="make embeddings with sparse=False"):
        backward(
            model, optimizer, [torch.randn(6, 8), torch.randint(10, (6, 3))], torch.randint(CLASSES, (6,))
        )
    assert optimizer.gradient_buffers == ()
    assert model.encoders["image"].weight.grad.is_sparse
