"""Models without a head: late fusion, several heads, unimodal heads that the model has already."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, plain_state_dict
from cggm.policies import (
    DGL,
    MIMO,
    MLB,
    OGMGE,
    OPM,
    SMP,
    FeaturePareto,
    MMPareto,
    ModalityDropout,
    NormEqualization,
    UnimodalLosses,
)
from helpers import CLASSES, batches

POLICIES = [
    CGGM(), OGMGE(), OPM(), SMP(stage_steps=1, epoch_steps=1), MMPareto(), FeaturePareto(),
    NormEqualization(bounded=True), DGL(weight=4), ModalityDropout(0.2), UnimodalLosses() + MIMO(),
    UnimodalLosses() + MLB(),
]  # fmt: skip


class LateFusion(nn.Module):
    """Each modality has its own head; the output is the sum of their logits."""

    modalities = ("audio", "image")

    def __init__(self):
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(8, 5), nn.Tanh())
        self.image = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        self.heads = nn.ModuleDict({"audio": nn.Linear(5, CLASSES), "image": nn.Linear(4, CLASSES)})

    def forward(self, audio, image):
        return self.heads["audio"](self.audio(audio)) + self.heads["image"](self.image(image))


def make(policy=None, own=True):
    torch.manual_seed(0)
    model = LateFusion()
    widths = {"audio": 5, "image": 4}
    encoders = {
        m: Encoder(m, classifier=model.heads[m] if own else nn.Linear(widths[m], CLASSES))
        for m in model.modalities
    }
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, base, CGGMOptimizerWrapper(base, model, encoders=encoders, policy=policy)


def step(model, optimizer, inputs, target):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(*inputs), target)
    optimizer.balance(loss, target).backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("own", [True, False], ids=["own heads", "linear classifiers"])
@pytest.mark.parametrize(
    "policy", POLICIES, ids=lambda p: "+".join(type(r).__name__ for r in getattr(p, "roles", [p]))
)
def test_late_fusion_trains_without_a_head(policy, own):
    model, base, optimizer = make(policy, own)
    before = copy.deepcopy(model.state_dict())
    assert sum(p.numel() > 0 for p in base.param_groups[1]["params"]) == (0 if own else 4)
    for inputs, target in batches(3):
        assert step(model, optimizer, inputs, target).isfinite()
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "cosines" not in optimizer.statistics  # there is no head to compare with


def test_the_models_own_heads_stay_the_models():
    model, base, optimizer = make()
    keys = set(model.state_dict())
    plain = {id(p) for p in model.parameters() if p.numel()}
    assert {key for key in keys if key.startswith("heads.")} == {
        f"heads.{m}.{p}" for m in model.modalities for p in ("weight", "bias")
    }
    for inputs, target in batches(2):
        step(model, optimizer, inputs, target)
    optimizer.detach()
    assert set(model.state_dict()) == keys
    assert {id(p) for group in base.param_groups for p in group["params"]} == plain
    weight = model.heads["audio"].weight.detach().clone()
    ((inputs, target),) = batches(1)
    base.zero_grad()
    F.cross_entropy(model(*inputs), target).backward()
    base.step()
    assert not torch.equal(model.heads["audio"].weight, weight)


def test_a_head_of_the_models_own_gets_both_losses():
    model, _, optimizer = make(CGGM())
    plain = copy.deepcopy(model)
    ((inputs, target),) = batches(1)
    features = plain.audio(inputs[0]).detach()
    loss = F.cross_entropy(plain(*inputs), target) + F.cross_entropy(plain.heads["audio"](features), target)
    (expected,) = torch.autograd.grad(loss, plain.heads["audio"].weight)
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    torch.testing.assert_close(model.heads["audio"].weight.grad, expected)


@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_without_a_head(own):
    model, _, optimizer = make(CGGM(smoothing=0.3), own)
    data = list(batches(4))
    for inputs, target in data[:2]:
        step(model, optimizer, inputs, target)
    other, _, again = make(CGGM(smoothing=0.3), own)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    for inputs, target in data[2:]:
        torch.testing.assert_close(
            step(model, optimizer, inputs, target), step(other, again, inputs, target), rtol=0, atol=0
        )


def test_relearning_without_a_head_says_what_it_needs():
    model, _, optimizer = make()
    data = list(batches(1))
    with pytest.raises(ValueError, match="head: relearn"):
        optimizer.relearn(data, data, model.state_dict())


def test_the_plain_checkpoint_keeps_the_models_own_heads():
    model, _, optimizer = make()
    for inputs, target in batches(3):
        step(model, optimizer, inputs, target)
    saved = plain_state_dict(optimizer.state_dict())
    plain = torch.optim.SGD(LateFusion().parameters(), lr=0.5)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.1
    assert len(saved["param_groups"]) == 1


def test_heads_that_the_optimizer_lacks_do_not_stop_a_checkpoint():
    model = LateFusion()
    encoders = {m: Encoder(m, classifier=model.heads[m]) for m in model.modalities}
    towers = [*model.audio.parameters(), *model.image.parameters()]
    optimizer = CGGMOptimizerWrapper(torch.optim.SGD(towers, lr=0.1), model, encoders=encoders)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
