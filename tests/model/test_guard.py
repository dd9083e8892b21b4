"""A bad unimodal classifier spoils neither the encoders nor the other classifiers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, NormEqualization, UnimodalLosses
from cggm.policies import AGM, MIMO, MLB, OGMGE, OPM, FeaturePareto, MMPareto, ModalityDropout
from helpers import NoHostSync, backward, batches, small_model, train, wrap

POLICIES = [
    CGGM(lam=0.1),
    CGGM.paper(1.0, 0.1),
    CGGM.released(1.0, 0.1),
    UnimodalLosses(),
    NormEqualization(bounded=True),
    MMPareto(),
    FeaturePareto(),
    OGMGE(noise=False),
    MLB(),
    UnimodalLosses() + MIMO(),
    OPM(),
    AGM(),
]


def break_(model):
    with torch.no_grad():
        for parameter in model.unimodal_classifiers.audio.parameters():
            parameter.fill_(torch.nan)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_broken_classifier_is_left_out_and_counted(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    train(model, optimizer, steps=2)
    assert optimizer.statistics["skipped"].tolist() == [0, 0]
    break_(model)
    other = copy.deepcopy(model.unimodal_classifiers.image)
    for inputs, target in batches(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*inputs), target)
        with NoHostSync():
            optimizer.balance(loss, target).backward()
        optimizer.modulate()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
    assert optimizer.statistics["skipped"].tolist() == [3, 0]
    assert torch.isfinite(optimizer.statistics["coefficients"]).all()
    own = [p for name, p in model.named_parameters() if "unimodal_classifiers.audio" not in name]
    assert all(torch.isfinite(p).all() for p in own)
    trained = zip(other.parameters(), model.unimodal_classifiers.image.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in trained)


def test_one_bad_micro_batch_drops_no_other():
    """The classifier's gradients are those of the good micro-batch alone."""
    gradients = []

    class Task:
        def loss(self, output, target, modality):
            scale = factor if modality == "audio" else 1.0
            return F.cross_entropy(output, target) * scale

        def score(self, output, target):
            return output.mean()

    for factors in ((1.0,), (1.0, torch.inf)):
        model = small_model()
        optimizer = wrap(model, policy=UnimodalLosses(), task=Task())
        for factor, (inputs, target) in zip(factors, batches(2), strict=False):
            loss = F.cross_entropy(model(*inputs), target)
            optimizer.balance(loss if factor == 1.0 else loss * 0, target).backward()
        gradients.append([p.grad.clone() for p in model.unimodal_classifiers.audio.parameters()])
        scores = optimizer._state.scores
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.isfinite(scores).all()


def test_infinities_of_the_loss_scale_arrive():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [p.clone() for p in model.parameters()]
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs), target) * 1e-6  # stays finite: the classifiers' losses overflow
    scaler.scale(optimizer.balance(loss, target) * 1e3).backward()
    audio = [p.grad for p in model.unimodal_classifiers.audio.parameters()]
    assert not all(torch.isfinite(g).all() for g in audio)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_copy_is_guarded_and_a_detached_model_is_not():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    train(model, optimizer, steps=1)
    twin, other = copy.deepcopy((model, optimizer))
    break_(twin)
    ((inputs, target),) = batches(1)
    other.zero_grad()
    backward(twin, other, inputs, target)
    assert all(torch.isfinite(p.grad).all() for p in twin.parameters() if p.grad is not None)
    classifier = model.unimodal_classifiers.audio
    optimizer.detach()
    assert not any(p._backward_hooks for p in classifier.parameters())


@pytest.mark.parametrize("policy", [UnimodalLosses(), NormEqualization(), MMPareto()], ids=repr)
def test_a_gradient_that_dropped_features_spoil_stops_at_the_encoder(policy):
    """The square root has an infinite slope at 0, where dropped features lie."""

    class Rooted(nn.Module):
        modalities = ("audio", "image")

        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleDict({"audio": nn.Linear(8, 4), "image": nn.Linear(6, 4)})
            self.head = nn.Linear(8, 3)

        def forward(self, *inputs):
            features = [e(x) for e, x in zip(self.encoders.values(), inputs, strict=True)]
            return self.head(torch.cat([x.abs().sqrt() for x in features], 1))

    torch.manual_seed(0)
    model = Rooted()
    optimizer = wrap(model, policy=policy + ModalityDropout(1.0))
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    assert all(torch.isfinite(p.grad).all() for p in model.encoders.parameters())
