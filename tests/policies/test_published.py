"""`CGGM.released` and `CGGM.paper` against plain re-statements of their arithmetic, step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM
from helpers import batches, flat, small_model, train, wrap

LR, STEPS, CLIP = 0.05, 14, 0.8


def make_classifiers(seed=3):
    torch.manual_seed(seed)
    return {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in ("audio", "image")}


def released_by_hand(model, classifiers, rho, lam):
    """The released training loop: magnitude from batch accuracies, cosine of weights, one step late."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    classifier_optimizer = torch.optim.SGD(
        [p for c in classifiers.values() for p in c.parameters()], lr=LR, momentum=0.9
    )
    old_scores, late_gradient = dict.fromkeys(classifiers, 0.0), None
    for inputs, target in batches(STEPS):
        features = {}
        for modality, x in zip(classifiers, inputs, strict=True):
            features[modality] = model.encoders[modality](x)
        hidden = torch.cat([f.relu() for f in features.values()], 1)
        loss = F.cross_entropy(model.head(model.fusion(hidden).relu()), target)
        optimizer.zero_grad()
        loss.backward()
        if late_gradient is not None:
            model.head.weight.grad += lam * late_gradient
        scores, unimodal_loss = {}, 0.0
        for modality, classifier in classifiers.items():
            output = classifier(features[modality].detach())
            scores[modality] = (output.argmax(1) == target).float().mean().item()
            unimodal_loss = unimodal_loss + F.cross_entropy(output, target)
        classifier_optimizer.zero_grad()
        unimodal_loss.backward()
        gains = {m: scores[m] - old_scores[m] for m in scores}
        total = sum(gains.values()) + 1e-8
        coefficients = {m: (total - gains[m]) / total for m in gains}
        head = model.head.weight.detach().clone().requires_grad_()
        term = 0.0
        for modality, classifier in classifiers.items():
            cosine = F.cosine_similarity(classifier[2].weight.detach().flatten(), head.flatten(), dim=0)
            term = term + abs(coefficients[modality]) - coefficients[modality] * cosine
        late_gradient = torch.autograd.grad(term / len(classifiers), head)[0]
        for modality, coefficient in coefficients.items():
            for parameter in model.encoders[modality].parameters():
                parameter.grad *= coefficient * rho
        classifier_optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        old_scores = scores
        yield flat(model), torch.tensor(list(coefficients.values())) * rho


def paper_by_hand(model, classifiers, rho, lam):
    """The paper's formulas: the cosine of gradients, differentiated in the same step through the head's gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    classifier_optimizer = torch.optim.SGD(
        [p for c in classifiers.values() for p in c.parameters()], lr=LR, momentum=0.9
    )
    old_scores = dict.fromkeys(classifiers, 0.0)
    for inputs, target in batches(STEPS):
        features = {m: model.encoders[m](x) for m, x in zip(classifiers, inputs, strict=True)}
        hidden = model.fusion(torch.cat([f.relu() for f in features.values()], 1)).relu()
        loss = F.cross_entropy(model.head(hidden), target)
        scores, unimodal, unimodal_loss = {}, {}, 0.0
        for modality, classifier in classifiers.items():
            output = classifier(features[modality].detach())
            scores[modality] = (output.argmax(1) == target).float().mean().item()
            one = F.cross_entropy(output, target)
            unimodal[modality] = torch.autograd.grad(one, classifier[2].weight, retain_graph=True)[0]
            unimodal_loss = unimodal_loss + one
        total = sum(scores[m] - old_scores[m] for m in scores) + 1e-8
        coefficients = {m: (total - (scores[m] - old_scores[m])) / total for m in scores}
        # softmax regression by hand: ∇_W = (softmax(W h + b) − onehot)ᵀ h / B, as a function of W alone
        head = model.head.weight.detach().clone().requires_grad_()
        errors = (hidden.detach() @ head.T + model.head.bias.detach()).softmax(1) - F.one_hot(target, 3)
        gradient = errors.T @ hidden.detach() / len(target)
        term = 0.0
        for modality, coefficient in coefficients.items():
            cosine = F.cosine_similarity(gradient.flatten(), unimodal[modality].flatten(), dim=0)
            term = term + abs(coefficient) - coefficient * cosine
        (turn,) = torch.autograd.grad(term / len(classifiers), head)
        optimizer.zero_grad()
        classifier_optimizer.zero_grad()
        (loss + unimodal_loss).backward()
        model.head.weight.grad += lam * turn
        for modality, coefficient in coefficients.items():
            for parameter in model.encoders[modality].parameters():
                parameter.grad *= coefficient * rho
        classifier_optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        old_scores = scores
        yield flat(model), torch.tensor(list(coefficients.values())) * rho


@pytest.mark.parametrize(
    ("by_hand", "policy"),
    [(released_by_hand, CGGM.released(rho=1.3, lam=0.2)), (paper_by_hand, CGGM.paper(rho=1.3, lam=0.2))],
    ids=["released", "paper"],
)
@pytest.mark.parametrize("apply", ["gradient", "feature"])
def test_follows_the_plain_restatement(by_hand, policy, apply):
    model, classifiers = small_model(), make_classifiers()
    expected = by_hand(copy.deepcopy(model), copy.deepcopy(classifiers), rho=1.3, lam=0.2)
    parameters = list(model.parameters())  # the script clips the model, not the classifiers
    base = torch.optim.SGD(parameters, lr=LR, momentum=0.9)
    optimizer = wrap(model, base, policy, classifiers=classifiers, apply=apply)
    for (inputs, target), (parameters_by_hand, coefficients) in zip(batches(STEPS), expected, strict=True):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.modulate()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        torch.testing.assert_close(optimizer.statistics["coefficients"], coefficients, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat(model), parameters_by_hand, rtol=0, atol=1e-6)


def test_the_direction_changes_the_head_alone():
    states = []
    for lam in (0.0, 0.2):
        model = small_model()
        train(model, wrap(model, policy=CGGM.paper(rho=1.0, lam=lam)), steps=1)
        states.append(model.state_dict())
    plain, turned = states
    changed = {name for name in plain if not torch.equal(plain[name], turned[name])}
    assert changed == {"head.weight"}
