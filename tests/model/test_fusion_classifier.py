"""The fusion on zero-filled features as a unimodal classifier, DGL's published form."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, Encoder
from cggm.policies import DGL, FeaturePareto, MMPareto, NormEqualization, UnimodalLosses
from helpers import backward, batches, small_model, train, wrap


def make(policy, **options):
    model = small_model()
    encoders = {m: Encoder(f"encoders.{m}", classifier="fusion") for m in model.modalities}
    return model, wrap(model, policy=policy, encoders=encoders, **options)


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_dgl_is_the_authors_step(weight):
    model, optimizer = make(DGL(weight=weight))
    plain = small_model()
    ((inputs, target),) = batches(1)

    def fused(features):
        return plain.head(plain.fusion(torch.cat([x.relu() for x in features], 1)).relu())

    features = [plain.encoders[m](x) for m, x in zip(plain.modalities, inputs, strict=True)]
    alone = [[x if i == j else torch.zeros_like(x) for j, x in enumerate(features)] for i in range(2)]
    (weight * sum(F.cross_entropy(fused(given), target) for given in alone)).backward()
    for layer in (plain.fusion, plain.head):
        layer.zero_grad()  # the unimodal losses train the encoders only
    F.cross_entropy(fused([x.detach() for x in features]), target).backward()

    backward(model, optimizer, inputs, target)
    for (name, mine), theirs in zip(plain.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad, theirs.grad, msg=name)
        assert mine.requires_grad


@pytest.mark.parametrize(
    "policy", [CGGM(), NormEqualization(bounded=True), UnimodalLosses(), FeaturePareto(), MMPareto(), DGL()]
)
def test_it_trains_without_further_parameters_and_resumes(policy):
    model, optimizer = make(policy)
    assert sum(p.numel() for p in model.unimodal_classifiers.parameters()) == 0
    train(model, optimizer, steps=2)
    other, again = make(policy)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(model, optimizer, steps=2), train(other, again, steps=2), rtol=0, atol=0)


def test_it_runs_under_the_forward_passs_autocast_and_with_batch_normalization():
    """The gradients are those of the published form by hand, in bfloat16 and with statistics of the batch."""
    results = []
    for ours in (True, False):
        model = small_model()
        model.fusion = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        if ours:
            encoders = {m: Encoder(f"encoders.{m}", classifier="fusion") for m in model.modalities}
            optimizer = wrap(model, policy=DGL(weight=4), encoders=encoders)
        ((inputs, target),) = batches(1)
        with torch.autocast("cpu", torch.bfloat16):
            if ours:
                loss = F.cross_entropy(model(*inputs), target)
                optimizer.balance(loss, target).backward()
            else:
                features = [model.encoders[m](x) for m, x in zip(model.modalities, inputs, strict=True)]
                alone = [
                    [x if i == j else torch.zeros_like(x) for j, x in enumerate(features)] for i in range(2)
                ]
                outputs = [model.head(model.fusion(torch.cat(a, 1).relu()).relu()) for a in alone]
                (4 * sum(F.cross_entropy(o.float(), target) for o in outputs)).backward()
        results.append([p.grad.clone() for p in model.encoders.parameters()])
    torch.testing.assert_close(*results, rtol=2e-2, atol=1e-3)


def test_it_trains_a_compiled_model():
    losses = []
    for run in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        model, optimizer = make(DGL(weight=4))
        compiled = run(model)
        for inputs, target in batches(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(compiled(*inputs), target)
            optimizer.balance(loss, target).backward()
            optimizer.step()
        losses.append(loss.detach())
    torch._dynamo.reset()
    torch.testing.assert_close(*losses)


def test_it_needs_a_head():
    with pytest.raises(ValueError, match="classifier='fusion' runs the fusion again, and head is None"):
        make(DGL(), head=None)


def test_two_combiners_are_refused_with_the_weight_to_pass():
    with pytest.raises(ValueError, match=r"as DGL\(weight=4\)"):
        UnimodalLosses(weight=4) + DGL()
