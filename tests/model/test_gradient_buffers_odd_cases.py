"""`flatten=True` where gradients change their type, their graph or their values in ways that one would not expect."""

import pytest
import torch
from torch import nn
from torch._dynamo import compiled_autograd
from torch.nn import functional as F

from cggm.policies import OGMGE
from helpers import CLASSES, WIDTHS, backward, batches, flat, in_buffers, small_model, wrap


class Mixed(nn.Module):
    """An encoder of channels-last convolutions in float64, and one in float32 with a layer in float64."""

    modalities = ("audio", "image")

    def __init__(self):
        super().__init__()
        convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        layers = nn.Sequential(nn.Linear(WIDTHS["audio"], 5), nn.Linear(5, 4).double())
        self.encoders = nn.ModuleDict({"audio": layers, "image": convolution.double()})
        self.encoders["image"].to(memory_format=torch.channels_last)
        self.encoders["audio"][0].register_forward_hook(lambda _m, _x, output: output.double())
        self.head = nn.Linear(8, CLASSES).double()

    def forward(self, audio, image):
        return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["image"](image)], 1))


def mixed_batch():
    torch.manual_seed(1)
    image = torch.randn(5, 3, 6, 6).double().to(memory_format=torch.channels_last)
    return [torch.randn(5, 8), image], torch.randint(CLASSES, (5,))


def test_every_dtype_has_a_buffer_and_every_gradient_its_order_of_elements():
    norms = []
    for flatten in (False, True):
        torch.manual_seed(0)
        model = Mixed()
        optimizer = wrap(model, flatten=flatten, classifiers={"audio": 4, "image": 4}, apply="feature")
        buffers = optimizer.gradient_buffers
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, optimizer, *mixed_batch())
            assert not buffers or in_buffers(buffers, model.parameters())
            optimizer.step()
        weight = model.encoders["image"][0].weight
        assert weight.grad.stride() == weight.stride() == (27, 1, 9, 3)
        norms.append(optimizer.statistics["grad_norms"])
    assert {b.dtype for b in buffers} == {torch.float32, torch.float64}
    torch.testing.assert_close(*norms)  # an encoder in two buffers has one norm


def converted(flatten, convert):
    """A step, a conversion of what has its gradients by then, another step."""
    model = small_model().double()
    model.encoders["audio"].append(nn.Identity())
    policy = OGMGE(noise=False)
    base = torch.optim.RMSprop(model.parameters(), lr=0.01)
    optimizer = wrap(model, base, policy, flatten=flatten, apply="gradient")
    for inputs, target in batches(3):
        optimizer.zero_grad(set_to_none=False)
        backward(model, optimizer, [x.double() for x in inputs], target)
        convert(model)
        optimizer.step()
    return flat(model)


def there_and_back(model):
    model.float().double()


def move_one_gradient(model):
    parameter = model.encoders["image"][0].weight
    parameter.grad.data = parameter.grad.data.clone()


@pytest.mark.parametrize("convert", [lambda model: None, there_and_back, move_one_gradient])
def test_contents_that_were_moved_behind_a_view_are_gathered_again(convert):
    assert torch.equal(converted(True, convert), converted(False, convert))


def test_buffers_follow_a_part_of_the_model_that_changes_its_dtype():
    model = small_model()
    optimizer = wrap(model, flatten=True)
    backward(model, optimizer, *next(batches(1)))
    optimizer.step()
    model.encoders["image"].double()  # and the gradients that are there
    assert {b.dtype for b in optimizer.gradient_buffers} == {torch.float32, torch.float64}
    assert in_buffers(optimizer.gradient_buffers, model.parameters())
    largest = max(float(p.grad.abs().max()) for p in model.encoders["image"].parameters())
    (double,) = (b for b in optimizer.gradient_buffers if b.dtype == torch.float64)
    assert float(double.abs().max()) == largest > 0


def in_another_layout(flatten, base):
    """Training of the convolutions that changes their order of elements while they have no gradients."""
    torch.manual_seed(0)
    model = Mixed()
    optimizer = wrap(model, base(model.parameters()), flatten=flatten, classifiers={"audio": 4, "image": 4})
    for layout in (torch.channels_last, torch.contiguous_format, torch.channels_last):
        optimizer.zero_grad()
        model.encoders["image"].to(memory_format=layout)
        backward(model, optimizer, *mixed_batch())
        optimizer.step()
    return flat(model)


FUSED = {
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("base", FUSED)
def test_a_view_has_the_order_of_elements_that_the_gradient_had(base):
    """torch's fused kernels pair elements by their place in memory."""
    assert torch.equal(in_another_layout(True, FUSED[base]), in_another_layout(False, FUSED[base]))


def test_the_gaps_between_gradients_hold_nothing_for_long():
    model = small_model()
    optimizer = wrap(model, flatten=True)
    backward(model, optimizer, *next(batches(1)))
    (buffer,) = optimizer.gradient_buffers
    used = sum(p.numel() for p in model.parameters())
    assert buffer.numel() > used  # biases of 3 elements
    buffer.fill_(float("nan"))  # as a factor that is not finite does
    optimizer.zero_grad()
    backward(model, optimizer, *next(batches(1)))
    assert torch.isfinite(optimizer.gradient_buffers[0]).all()
    assert int((buffer != 0).sum()) <= used


def test_gradients_keep_the_graph_that_create_graph_asks_for():
    results = []
    for flatten in (False, True):
        model = small_model()
        torch.manual_seed(3)
        optimizer = wrap(model, flatten=flatten)
        for inputs, target in batches(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), target)
            optimizer.balance(loss, target).backward(create_graph=True)
            penalty = sum(p.grad.square().sum() for p in model.encoders.parameters())
            penalty.backward()
            for parameter in model.parameters():
                parameter.grad = parameter.grad.detach()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


def test_a_compiled_backward_has_no_end_to_gather_at_and_the_step_does_it():
    results = []
    for flatten in (False, True):
        model = small_model()
        torch.manual_seed(3)
        optimizer = wrap(model, flatten=flatten)
        for inputs, target in batches(2):
            optimizer.zero_grad()
            loss = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
            with compiled_autograd._enable(torch.compile(backend="eager")):
                loss.backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)
    assert in_buffers(optimizer.gradient_buffers, model.parameters())


class Words(nn.Module):
    """An encoder with sparse gradients."""

    modalities = ("audio", "image")

    def __init__(self):
        super().__init__()
        words = nn.EmbeddingBag(10, 4, sparse=True)
        self.encoders = nn.ModuleDict({"audio": nn.Linear(8, 4), "image": words})
        self.head = nn.Linear(8, CLASSES)

    def forward(self, audio, image):
        return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["image"](image)], 1))


def test_a_sparse_gradient_is_refused_and_nothing_has_moved():
    model = Words()
    optimizer = wrap(model, flatten=True, classifiers={"audio": 4, "image": 4})
    inputs = [torch.randn(6, 8), torch.randint(10, (6, 3))]
    (buffer,) = optimizer.gradient_buffers
    with pytest.raises(RuntimeError, match="make embeddings with sparse=False"):
        backward(model, optimizer, inputs, torch.randint(CLASSES, (6,)))
    assert not buffer.any()
    assert model.encoders["image"].weight.grad.is_sparse
    assert not in_buffers([buffer], [model.head.weight])
