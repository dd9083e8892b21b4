"""Combining gradients at the encoders' parameters: which passes run, and the gradients they produce."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm.policies import MMPareto
from helpers import SmallModel, backward, batches, small_model, train, wrap

THREE = ("audio", "image", "text")


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def classifiers(modalities=("audio", "image")):
    torch.manual_seed(3)
    return {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in modalities}


def combined(sets):
    """MMPareto's rule on two sets of one encoder's gradients."""
    rows = [torch.stack([one.flatten(), other.flatten()]).double() for one, other in zip(*sets, strict=True)]
    weights = MMPareto().combination_weights(torch.stack([row @ row.T for row in rows]))
    return [(w @ row).view_as(g).float() for w, row, g in zip(weights, rows, sets[0], strict=True)]


def test_two_passes_serve_all_encoders(monkeypatch):
    model = small_model(THREE)
    optimizer = wrap(model, policy=MMPareto())
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(len(a[0])) or grad(*a, **k))
    for number, (inputs, target) in enumerate(batches(2, THREE), 1):
        backward(model, optimizer, inputs, target)
        assert passes == [3, 3] * number


def test_the_graph_can_be_retained():
    model = small_model()
    optimizer = wrap(model, policy=MMPareto())
    ((inputs, target),) = batches(1)
    total = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
    total.backward(retain_graph=True)
    once = gradients(model)
    total.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])


class Twice(SmallModel):
    """Every encoder runs on its input and on the same from end to start; the classifier sees both runs."""

    def forward(self, *inputs):
        runs = [
            (self.encoders[m](x.flip(1)) + self.encoders[m](x)).tanh()
            for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(runs, 1)))


def test_every_run_of_an_encoder_is_combined_by_itself():
    torch.manual_seed(0)
    model, own = Twice(("audio", "image")), classifiers()
    ((inputs, target),) = batches(1)
    encoder = model.encoders["audio"]
    parameters = list(encoder.parameters())
    runs = [encoder(inputs[0].flip(1)), encoder(inputs[0])]
    other = model.encoders["image"](inputs[1].flip(1)) + model.encoders["image"](inputs[1])
    features = [sum(runs).tanh(), other.tanh()]
    loss = F.cross_entropy(model.head(model.fusion(torch.cat(features, 1))), target)
    arriving = torch.autograd.grad(loss, runs, retain_graph=True)
    met = []
    for run, gradient in zip(runs, arriving, strict=True):
        unimodal = F.cross_entropy(own["audio"](run), target) / 2  # the mean over two runs
        multimodal = torch.autograd.grad(run, parameters, gradient, retain_graph=True)
        met.append(combined([multimodal, torch.autograd.grad(unimodal, parameters, retain_graph=True)]))
    optimizer = wrap(model, policy=MMPareto(), classifiers=own)
    backward(model, optimizer, inputs, target)
    for parameter, one, two in zip(parameters, *met, strict=True):
        torch.testing.assert_close(parameter.grad, one + two)


class Deaf(SmallModel):
    """The fusion makes nothing of the image, which only its own classifier trains."""

    def forward(self, *inputs):
        audio, image = (self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True))
        return self.head(self.fusion(torch.cat([audio, torch.zeros_like(image)], 1)))


def test_a_gradient_that_comes_alone_counts_as_it_is():
    torch.manual_seed(0)
    model, own = Deaf(("audio", "image")), classifiers()
    model.encoders["image"][0].bias.requires_grad_(False)
    ((inputs, target),) = batches(1)
    trained = [p for p in model.encoders["image"].parameters() if p.requires_grad]
    loss = F.cross_entropy(own["image"](model.encoders["image"](inputs[1])), target)
    expected = torch.autograd.grad(loss, trained)
    optimizer = wrap(model, policy=MMPareto(), classifiers=own)
    backward(model, optimizer, inputs, target)
    assert model.encoders["image"][0].bias.grad is None
    torch.testing.assert_close([p.grad for p in trained], list(expected))


def test_a_backward_pass_that_fails_leaves_nothing_behind():
    model = small_model()
    twin = copy.deepcopy(model)
    optimizer, other = (wrap(m, policy=MMPareto(), classifiers=classifiers()) for m in (model, twin))
    (failing, batch) = batches(2)

    def refuse(_):
        raise ArithmeticError("enough")

    handle = model.encoders["audio"][0].weight.register_hook(refuse)
    with pytest.raises(ArithmeticError, match="enough"):
        backward(model, optimizer, *failing)
    handle.remove()
    for one, wrapper in ((model, optimizer), (twin, other)):
        wrapper.zero_grad()
        backward(one, wrapper, *batch)
    torch.testing.assert_close(gradients(model), gradients(twin), rtol=0, atol=0)


def test_a_backward_pass_that_fails_halfway_keeps_no_graph_alive():
    model = small_model()
    optimizer, outputs = wrap(model, policy=MMPareto()), []
    model.encoders["image"].register_forward_hook(lambda *a: outputs.append(weakref.ref(a[2])), prepend=True)

    def refuse(gradient):
        raise ArithmeticError("enough")

    def fail_after_the_first_cut():
        ((inputs, target),) = batches(1)
        audio, image = (encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True))
        audio.register_hook(refuse)  # the image's cut comes first
        hidden = model.fusion(torch.cat([audio.relu(), image.relu()], 1)).relu()
        optimizer.balance(F.cross_entropy(model.head(hidden), target), target).backward()

    with pytest.raises(ArithmeticError, match="enough"):
        fail_after_the_first_cut()
    optimizer.zero_grad()
    gc.collect()
    assert len(outputs) == 1
    assert outputs[0]() is None


def test_weights_of_another_shape_are_refused():
    class Old(MMPareto):
        def combination_weights(self, gram):
            return torch.ones(len(gram), 2, dtype=gram.dtype)

    model = small_model()
    with pytest.raises(ValueError, match=r"combination_weights\(\) must return \[S, M, 2\]"):
        train(model, wrap(model, policy=Old()), steps=1)


def test_a_copy_trains_on_by_itself():
    model = small_model()
    optimizer = wrap(model, policy=MMPareto())
    train(model, optimizer, steps=2)
    twin_model, twin = copy.deepcopy((model, optimizer))
    for one, wrapper in ((model, optimizer), (twin_model, twin)):
        wrapper.zero_grad()
        backward(one, wrapper, *next(batches(1)))
    torch.testing.assert_close(gradients(model), gradients(twin_model), rtol=0, atol=0)
