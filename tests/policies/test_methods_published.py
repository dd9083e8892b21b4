"""OGM-GE, AGM, MMPareto, MLB, MIMO and TCMax against plain re-statements of their released arithmetic, step by step."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm.policies import AGM, MIMO, MLB, OGMGE, MMPareto, TCMax, UnimodalLosses
from helpers import batches, flat, small_model, wrap

LR, STEPS = 0.1, 14
TWO, THREE = ("audio", "image"), ("audio", "image", "text")


def make_classifiers(modalities, seed=3):
    torch.manual_seed(seed)
    return nn.ModuleDict({m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in modalities})


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=LR, momentum=0.9)


def encode(model, inputs):
    return [model.encoders[m](x) for m, x in zip(model.modalities, inputs, strict=True)]


def fuse(model, features):
    return model.head(model.fusion(torch.cat([f.relu() for f in features], 1)).relu())


def scaled_by_hand(model, classifiers, coefficient, detached):
    """Encoders' gradients times a coefficient from the sums of the true classes' probabilities."""
    optimizer = sgd(model, classifiers)
    for inputs, target in batches(STEPS, model.modalities):
        features = encode(model, inputs)
        seen = [f.detach() if detached else f for f in features]
        outputs = [classifiers[m](f) for m, f in zip(model.modalities, seen, strict=True)]
        scores = [sum(o.softmax(1)[b, y].item() for b, y in enumerate(target)) for o in outputs]
        optimizer.zero_grad()
        (
            F.cross_entropy(fuse(model, features), target) + sum(F.cross_entropy(o, target) for o in outputs)
        ).backward()
        for i, modality in enumerate(model.modalities):
            others = [s for j, s in enumerate(scores) if j != i]
            ratio = scores[i] / (sum(others) / len(others))
            for parameter in model.encoders[modality].parameters():
                parameter.grad *= coefficient(ratio)
        optimizer.step()
        yield flat(model)


def ogm_by_hand(model, classifiers, alpha):
    def coefficient(ratio):
        return 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0

    return scaled_by_hand(model, classifiers, coefficient, detached=True)


def mlb_by_hand(model, classifiers, beta):
    def coefficient(ratio):
        if 1 / ratio > 1:
            return 1 + (beta - 1) * math.tanh(0.8 * (1 / ratio - 1))
        return 1 + math.tanh(0.8 * (1 / ratio - 1))

    return scaled_by_hand(model, classifiers, coefficient, detached=False)


def mimo_by_hand(model, classifiers, lam):
    """The encoders descend `L + λ Σ σ_i f_i`, their classifiers `f_i`."""
    optimizer, best = sgd(model, classifiers), [math.inf] * len(model.modalities)
    for inputs, target in batches(STEPS, model.modalities):
        features = encode(model, inputs)
        outputs = [classifiers[m](f) for m, f in zip(model.modalities, features, strict=True)]
        losses = [F.cross_entropy(output, target) for output in outputs]
        best = [min(b, f.item()) for b, f in zip(best, losses, strict=True)]
        shares = torch.softmax(
            torch.tensor([(f.item() - b) / 0.1 for f, b in zip(losses, best, strict=True)]), 0
        )
        encoders = list(model.encoders.parameters())
        loss = F.cross_entropy(fuse(model, features), target)
        weighed = loss + lam * sum(share * f for share, f in zip(shares, losses, strict=True))
        gradients = torch.autograd.grad(weighed, encoders, retain_graph=True)
        optimizer.zero_grad()
        (loss + sum(losses)).backward()
        for parameter, gradient in zip(encoders, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        yield flat(model)


def responses_by_hand(model, features):
    """Two modalities as released; three by the mean over all orders in which they can join."""
    modalities, value = len(features), {(): 0.0}
    for size in range(1, modalities + 1):
        for members in itertools.combinations(range(modalities), size):
            kept = [f if i in members else torch.zeros_like(f) for i, f in enumerate(features)]
            value[members] = fuse(model, kept)
    if modalities == 2:
        return [
            0.5 * (value[0, 1] - value[1,] + value[0,]),
            0.5 * (value[0, 1] - value[0,] + value[1,]),
        ]
    responses = [0.0] * modalities
    orders = list(itertools.permutations(range(modalities)))
    for order in orders:
        for place, i in enumerate(order):
            before = tuple(sorted(order[:place]))
            gain = value[tuple(sorted((*before, i)))] - value[before]
            responses[i] = responses[i] + gain / len(orders)
    return responses


def agm_by_hand(model, classifiers, alpha, micro=1):
    """With micro-batches, the coefficients of each are made from the scores up to it."""
    optimizer, modalities = sgd(model), len(model.modalities)
    means, factor = [0.0] * modalities, modalities / (modalities - 1)
    for step, batch in enumerate(batches(STEPS, model.modalities)):
        usual = [math.exp(factor * (sum(means) / modalities - m)) for m in means]
        totals = [0.0] * modalities
        optimizer.zero_grad()
        for number, (inputs, target) in enumerate(parts(*batch, micro), 1):
            responses = responses_by_hand(model, encode(model, inputs))
            rows = torch.arange(len(target))
            for i, response in enumerate(responses):
                sure = torch.clamp(response.softmax(1)[rows, target], min=1e-8)
                totals[i] -= torch.log(sure).mean().item()
            surprises = [total / number for total in totals]
            ratios = [math.exp(factor * (sum(surprises) / modalities - s)) for s in surprises]
            coefficients = [math.exp(alpha * (q - r)) for q, r in zip(usual, ratios, strict=True)]
            for response, coefficient in zip(responses, coefficients, strict=True):
                response.register_hook(lambda gradient, c=coefficient: gradient * c)
            (F.cross_entropy(sum(responses), target) / micro).backward()
        means = [m * step / (step + 1) + s / (step + 1) for m, s in zip(means, surprises, strict=True)]
        optimizer.step()
        yield flat(model)


def parts(inputs, target, micro):
    """A batch in equal micro-batches."""
    return zip(zip(*(x.chunk(micro) for x in inputs), strict=True), target.chunk(micro), strict=True)


def mmpareto_by_hand(model, classifiers, gamma):
    """A backward pass per loss, and a loop over tensors."""
    optimizer = sgd(model, classifiers)
    for inputs, target in batches(STEPS, model.modalities):
        features = encode(model, inputs)
        outputs = [classifiers[m](f) for m, f in zip(model.modalities, features, strict=True)]
        loss = F.cross_entropy(fuse(model, features), target)
        losses = [F.cross_entropy(output, target) for output in outputs]
        optimizer.zero_grad()
        combined = {}
        for modality, unimodal in zip(model.modalities, losses, strict=True):
            parameters = list(model.encoders[modality].parameters())
            one = torch.autograd.grad(loss, parameters, retain_graph=True)
            other = torch.autograd.grad(unimodal, parameters, retain_graph=True)
            g, u = torch.cat([x.flatten() for x in one]), torch.cat([x.flatten() for x in other])
            x, y, z = (g @ g).item(), (g @ u).item(), (u @ u).item()
            if y > 0:
                weight = 0.5
            elif y >= x:
                weight = 0.999
            elif y >= z:
                weight = 0.001
            else:
                weight = (z - y) / (x + z - 2 * y)
            for parameter, a, b in zip(parameters, one, other, strict=True):
                h = 2 * weight * a + 2 * (1 - weight) * b
                if (a + b).norm() > h.norm():
                    h = h * (a + b).norm() / h.norm()
                combined[parameter] = gamma * h
        (loss + sum(losses)).backward()
        for parameter, gradient in combined.items():
            parameter.grad = gradient
        optimizer.step()
        yield flat(model)


def tcmax_by_hand(model, classifiers, weight):
    """The released loss: probabilities over all pairs and classes together; up to a constant it is ours."""
    optimizer = sgd(model, classifiers)
    for inputs, target in batches(STEPS, model.modalities, size=6):
        features = encode(model, inputs)
        rows = list(itertools.product(range(6), repeat=len(features)))
        outputs = fuse(model, [f[[row[i] for row in rows]] for i, f in enumerate(features)])
        shares = (outputs - outputs.mean()).exp()
        shares = shares / shares.sum()
        true = [shares[rows.index((b,) * len(features)), y] for b, y in enumerate(target)]
        loss = (1 - weight) * F.cross_entropy(fuse(model, features), target)
        loss = loss - weight * torch.stack(true).log().mean()
        outputs = [classifiers[m](f.detach()) for m, f in zip(model.modalities, features, strict=True)]
        optimizer.zero_grad()
        (loss + sum(F.cross_entropy(o, target) for o in outputs)).backward()
        optimizer.step()
        yield flat(model)


@pytest.mark.parametrize("modalities", [TWO, THREE])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_tcmax_follows_the_plain_restatement(modalities, weight):
    model, classifiers = small_model(modalities), make_classifiers(modalities)
    expected = tcmax_by_hand(copy.deepcopy(model), copy.deepcopy(classifiers), weight)
    optimizer = wrap(model, sgd(model), TCMax(weight), classifiers=dict(classifiers.items()))
    for (inputs, target), by_hand_now in zip(batches(STEPS, modalities, size=6), expected, strict=True):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()
        torch.testing.assert_close(flat(model), by_hand_now, rtol=0, atol=1e-5)


def test_tcmax_of_drawn_tuples():
    model = small_model(THREE)
    optimizer = wrap(model, policy=TCMax(max_rows=50, sampled=True))
    ((inputs, target),) = batches(1, THREE, size=6)
    features = encode(model, inputs)
    torch.manual_seed(4)
    outputs = fuse(model, [f[i] for f, i in zip(features, torch.randint(6, (3, 50)), strict=True)])
    expected = outputs.exp().mean().log() - fuse(model, features)[torch.arange(6), target].mean()
    loss = F.cross_entropy(model(*inputs), target)
    classifiers = sum(
        F.cross_entropy(c(f.detach()), target)
        for c, f in zip(model.unimodal_classifiers.children(), features, strict=True)
    )
    torch.manual_seed(4)
    torch.testing.assert_close(optimizer.balance(loss, target) - classifiers, expected)


def test_tcmax_of_a_linear_head_is_a_product_of_sums():
    """The O(B) form of the paper: `exp(a_j + v_k)` summed over all pairs is the product of both sums."""
    torch.manual_seed(0)
    model = Plain()
    optimizer = wrap(model, policy=TCMax())
    ((inputs, target),) = batches(1)
    audio, image = encode(model, inputs)
    one = audio @ model.head.weight[:, :4].T + model.head.bias
    other = image @ model.head.weight[:, 4:].T
    everyone = (one.exp().sum(0) * other.exp().sum(0)).sum() / (32 * 32 * 3)
    expected = everyone.log() - (one + other)[torch.arange(32), target].mean()
    loss = F.cross_entropy(model(*inputs), target)
    classifiers = sum(
        F.cross_entropy(c(f.detach()), target)
        for c, f in zip(model.unimodal_classifiers.children(), (audio, image), strict=True)
    )
    torch.testing.assert_close(optimizer.balance(loss, target) - classifiers, expected)


@pytest.mark.parametrize("modalities", [TWO, THREE])
@pytest.mark.parametrize(
    ("by_hand", "policy", "setting"),
    [
        (ogm_by_hand, OGMGE(0.4, noise=False), 0.4),
        (agm_by_hand, AGM(1.5), 1.5),
        (mmpareto_by_hand, MMPareto(1.5), 1.5),
        (mlb_by_hand, UnimodalLosses() + MLB(0.8, beta_max=3.0), 3.0),
        (mimo_by_hand, UnimodalLosses() + MIMO(lam=2.0), 2.0),
    ],
    ids=["ogm", "agm", "mmpareto", "mlb", "mimo"],
)
def test_follows_the_plain_restatement(by_hand, policy, setting, modalities):
    model, classifiers = small_model(modalities), make_classifiers(modalities)
    expected = by_hand(copy.deepcopy(model), copy.deepcopy(classifiers), setting)
    optimizer = wrap(model, sgd(model), policy, classifiers=dict(classifiers.items()))
    start = flat(model)
    for (inputs, target), by_hand_now in zip(batches(STEPS, modalities), expected, strict=True):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()
        torch.testing.assert_close(flat(model), by_hand_now, rtol=0, atol=1e-5)
    assert (flat(model) - start).abs().max() > 1e-2


@pytest.mark.parametrize("modalities", [TWO, THREE])
def test_agm_over_micro_batches(modalities):
    model, classifiers = small_model(modalities), make_classifiers(modalities)
    expected = agm_by_hand(copy.deepcopy(model), classifiers, alpha=1.5, micro=4)
    optimizer = wrap(model, sgd(model), AGM(1.5), classifiers=dict(classifiers.items()))
    for batch, by_hand_now in zip(batches(STEPS, modalities), expected, strict=True):
        optimizer.zero_grad()
        for inputs, target in parts(*batch, 4):
            loss = F.cross_entropy(model(*inputs), target)
            (optimizer.balance(loss, target) / 4).backward()
        optimizer.step()
        torch.testing.assert_close(flat(model), by_hand_now, rtol=0, atol=1e-5)


class Plain(nn.Module):
    """The head takes the concatenated features directly, as in the released script of OGM-GE."""

    modalities = TWO

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(8, 4), "image": nn.Linear(6, 5)})
        self.head = nn.Linear(9, 3)

    def forward(self, *inputs):
        return self.head(torch.cat(encode(self, inputs), 1))


def test_ogm_with_a_split_head():
    torch.manual_seed(0)
    model = Plain()
    optimizer = wrap(model, policy=OGMGE(0.4, noise=False, split_head=True))
    ((inputs, target),) = batches(1)
    with torch.no_grad():
        audio, image = encode(model, inputs)
        one = audio @ model.head.weight[:, :4].T + model.head.bias / 2
        other = image @ model.head.weight[:, 4:].T + model.head.bias / 2
        scores = [o.softmax(1)[torch.arange(32), target].sum() for o in (one, other)]
        ratios = torch.stack([scores[0] / scores[1], scores[1] / scores[0]])
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()
    expected = torch.where(ratios > 1, 1 - torch.tanh(0.4 * ratios), torch.ones(2))
    torch.testing.assert_close(optimizer.statistics["coefficients"], expected)


class Scaled(Plain):
    def forward(self, *inputs):
        return self.head(2 * torch.cat(encode(self, inputs), 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_model(THREE), r"the head cannot be split: .*\[4, 4, 4\].*OGMGE\(split_head=False\)"),
        (small_model, "does not take the features as they are"),
        (Scaled, "does not take the features as they are"),
    ],
)
def test_a_head_that_cannot_be_split(make, message):
    model = make()
    optimizer = wrap(model, policy=OGMGE(0.4, split_head=True))
    ((inputs, target),) = batches(1, model.modalities)
    loss = F.cross_entropy(model(*inputs), target)
    with pytest.raises(ValueError, match=message):
        optimizer.balance(loss, target)
