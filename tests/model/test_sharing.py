"""Encoders with parameters in common: coefficients leave these alone, everything else goes on as without them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, Encoder
from cggm.policies import AGM, Coefficients, CoefficientUpdate, FeaturePareto, MMPareto, NormEqualization
from helpers import backward, batches, flat, small_model, train, wrap


class Tenth(Coefficients):
    """Coefficients of 0.1."""

    def balance(self, scores, state):
        coefficients = torch.full_like(scores, 0.1)
        return CoefficientUpdate(coefficients, coefficients, state)


class Transposed(nn.Module):
    """A fusion layer by half of a weight that an encoder has, too."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight.view(8, 8)


def shared_model(tied=False):
    """The encoders have their last layer in common; `tied`, the fusion also uses a layer of the audio encoder."""
    model = small_model()
    model.encoders["image"][2] = model.encoders["audio"][2]
    if tied:
        model.encoders["audio"][2].weight = nn.Parameter(torch.randn(4, 16))
        model.fusion = Transposed(model.encoders["audio"][2].weight)
    return model


def leave(model, policy, **options):
    encoders = {"audio": Encoder("encoders.audio", shared="leave"), "image": "encoders.image"}
    return wrap(model, policy=policy, encoders=encoders, **options)


@pytest.mark.parametrize("fused", [False, "auto"])
@pytest.mark.parametrize("apply", ["gradient", "update"])
@pytest.mark.parametrize("tied", [False, True])
def test_coefficients_leave_shared_parameters_alone(apply, tied, fused):
    ((inputs, target),) = batches(1)
    results = []
    for policy in (Tenth(), None):
        model = shared_model(tied)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        if policy is None:
            F.cross_entropy(model(*inputs), target).backward()
            base.step()
        else:
            optimizer = leave(model, policy, base=base, apply=apply, fused=fused)
            backward(model, optimizer, inputs, target)
            optimizer.step()
        results.append({name: model.get_parameter(name).detach() - value for name, value in before.items()})
    shared = ("encoders.audio.2", "encoders.image.2")
    for name, update in results[0].items():
        own = name.startswith("encoders") and not name.startswith(shared)
        torch.testing.assert_close(update, results[1][name] * (0.1 if own else 1), msg=name)


def test_the_default_policy_adds_up_what_enters_at_both_outputs():
    """Their gradient is that of the two outputs' combined gradients, sent backward by hand."""
    model, plain = shared_model(), shared_model()
    policy = NormEqualization()
    optimizer = leave(model, policy)
    ((inputs, target),) = batches(1)
    classifiers = list(model.unimodal_classifiers.children())
    backward(model, optimizer, inputs, target)

    features = [plain.encoders[m](x) for m, x in zip(plain.modalities, inputs, strict=True)]
    leaves = [x.detach().requires_grad_() for x in features]
    fused = plain.head(plain.fusion(torch.cat([x.relu() for x in leaves], 1)).relu())
    multimodal = torch.autograd.grad(F.cross_entropy(fused, target), leaves)
    losses = [
        F.cross_entropy(classifier(x), target) for classifier, x in zip(classifiers, leaves, strict=True)
    ]
    unimodal = torch.autograd.grad(sum(losses), leaves)
    torch.autograd.backward(
        features, [policy.combine(m, u) for m, u in zip(multimodal, unimodal, strict=True)]
    )
    for name in ("encoders.audio.2.weight", "encoders.audio.0.weight", "encoders.image.0.weight"):
        torch.testing.assert_close(model.get_parameter(name).grad, plain.get_parameter(name).grad)


@pytest.mark.parametrize("fused", [False, "auto"])
def test_the_bound_counts_the_unimodal_gradient_of_shared_parameters(fused):
    """All of the encoders is shared: a bound that took their gradient for joint training's would never act."""
    norms = []
    for bounded in (False, True):
        model = small_model()
        for parameter in model.encoders["audio"].parameters():
            nn.init.normal_(parameter, std=0.3)
        inner = model.encoders["audio"][2]
        model.encoders["image"][2] = inner
        for encoder in model.encoders.values():
            encoder[0].requires_grad_(False)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = leave(model, NormEqualization(bounded=bounded), base=base, fused=fused)
        before = inner.weight.detach().clone()
        for inputs, target in batches(3):
            optimizer.zero_grad()
            backward(model, optimizer, inputs, target)
            optimizer.step()
        norms.append((inner.weight - before).norm())
    assert norms[1] < 0.95 * norms[0]


def test_flat_buffers_checkpoints_and_statistics():
    model = shared_model()
    optimizer = leave(model, CGGM(), apply="gradient", flatten=True)
    train(model, optimizer, steps=2)
    assert optimizer.statistics["grad_norms"].shape == (2,)
    again, other = shared_model(), None
    other = leave(again, CGGM(), apply="gradient", flatten=True)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for one, its in ((model, optimizer), (again, other)):
        train(one, its, steps=2, seed=5)
    assert torch.equal(flat(model), flat(again))


@pytest.mark.parametrize(
    ("policy", "options", "fix"),
    [
        (CGGM(), {}, "pass apply='gradient' or 'update'"),
        (CGGM(), {"apply": "feature"}, "pass apply='gradient' or 'update'"),
        (MMPareto(), {}, "take FeaturePareto"),
        (AGM(), {}, "take another policy"),
    ],
)
def test_what_cannot_leave_them_out_is_refused(policy, options, fix):
    with pytest.raises(ValueError, match=fix):
        leave(shared_model(), policy, **options)


def test_another_name_of_the_same_module_is_not_shared():
    model = small_model()
    model.audio = model.encoders["audio"]
    optimizer = wrap(model, policy=FeaturePareto())
    train(model, optimizer, steps=1)
    assert len(optimizer._model.encoders.encoder_parameters()) == 8
