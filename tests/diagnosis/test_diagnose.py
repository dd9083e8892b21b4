"""The verdict on made data sets whose answer is known, and that only copies train."""

import json
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cggm
from cggm import Encoder
from cggm.diagnosis.probes import chance, linear_probe
from cggm.diagnosis.verdict import judge
from cggm.tasks import Classification, Regression

CLASSES = 4


class Model(nn.Module):
    """Two encoders of one hidden layer, concatenation, a hidden fusion layer, a head."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.fusion = nn.Linear(16, 16)
        self.head = nn.Linear(16, outputs)

    def forward(self, first, second):
        features = torch.cat([self.first(first), self.second(second)], 1)
        return self.head(self.fusion(features).relu())


def made(kind, rows, seed):
    """Inputs `[N, 12]` of both modalities, and classes `[N]`.

    A class is a center in each modality; "starved" has two products of signs in the second, slower to learn.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (rows,), generator=generator)
    centers = torch.randn(2, CLASSES, 12, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(2, rows, 12, generator=generator)
    scales = {"starved": (1.0, 0.0), "useless": (1.0, 0.0), "redundant": (2.0, 2.0), "balanced": (0.7, 0.7)}
    first, second = (s * c[target] + n for s, c, n in zip(scales[kind], centers, noise, strict=True))
    if kind == "starved":
        signs = torch.randint(2, (rows, 2), generator=generator) * 2 - 1
        others = (torch.stack([target % 2, target // 2], 1) * 2 - 1) * signs
        second = F.pad(torch.cat([signs, others], 1).float(), (0, 8)) + noise[1] / 3
    return first, second, target


def loader(kind, seed=0, rows=600):
    *inputs, target = made(kind, rows, seed)
    parts = zip(*(x.split(32) for x in (*inputs, target)), strict=True)
    return [((a, b), y) for a, b, y in parts]


def diagnosed(kind, epochs=6, rows=600, lr=0.1):
    torch.manual_seed(0)
    return cggm.diagnose(
        Model(),
        {"first": "first", "second": "second"},
        head="head",
        train_loader=loader(kind, rows=rows),
        validation_loader=loader(kind, seed=1),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        epochs=epochs,
    )


@pytest.mark.slow
def test_a_slow_modality_beside_a_fast_one_is_starved():
    report = diagnosed("starved", epochs=10, rows=1500, lr=0.03)
    assert report.overall == "unbalanced", str(report)
    assert report.modalities["second"].kind == "starved"
    assert report.modalities["second"].gap > 0.1
    assert report.modalities["second"].shapley_share < 0.35
    assert report.modalities["first"].kind == "well learnt"
    assert report.verdict.startswith("second is starved: alone")
    assert "balancing is worth trying, expect a price of" in report.verdict


def test_noise_carries_no_signal():
    report = diagnosed("useless")
    assert report.overall == "one modality", str(report)
    assert report.modalities["second"].kind == "near chance"
    assert (
        report.verdict
        == "first carries the signal; second is near chance alone: balancing has nothing to win"
    )
    assert report.modalities["first"].shapley_share > 0.8


def test_each_modality_alone_is_enough():
    report = diagnosed("redundant")
    assert report.overall == "redundant", str(report)


def test_both_modalities_are_needed_and_learnt():
    report = diagnosed("balanced")
    assert report.overall == "balanced", str(report)
    assert report.joint > max(each.alone for each in report.modalities.values()) + 0.03
    shares = [each.shapley_share for each in report.modalities.values()]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.25


def test_only_copies_train():
    torch.manual_seed(3)
    model = Model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = torch.optim.Adam(model.parameters())
    data = loader("balanced")
    classifier = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, CLASSES))
    weights = classifier[0].weight.clone()
    encoders = {"first": Encoder(model.first, classifier=classifier), "second": model.second}
    random_numbers, pythons = torch.get_rng_state(), random.getstate()
    cggm.diagnose(model, encoders, head=model.head, train_loader=data, validation_loader=data, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(classifier[0].weight, weights)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert random.getstate() == pythons
    assert not own.state
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, _ in model.named_children()] == ["first", "second", "fusion", "head"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_regression_is_judged_by_its_own_score():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(640, 12, generator=generator) for _ in range(2))
    target = first[:, 0] * 2
    batches = [((first[i : i + 32], second[i : i + 32]), target[i : i + 32]) for i in range(0, 640, 32)]
    report = cggm.diagnose(
        Model(outputs=1),
        {"first": "first", "second": "second"},
        head="head",
        train_loader=batches[:16],
        validation_loader=batches[16:],
        task="regression",
        epochs=15,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
    )
    assert report.chance < -1
    assert report.modalities["second"].kind == "near chance", str(report)
    assert report.modalities["first"].alone > -0.8
    assert report.modalities["first"].purity_gap is None
    assert any("purity" in note for note in report.notes)


def test_the_report_prints_and_is_saved(tmp_path):
    report = diagnosed("balanced", epochs=1)
    text = str(report)
    assert "Shapley share" in text
    assert text.endswith(f"Verdict: {report.verdict}.")
    rich = pytest.importorskip("rich.console").Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rich.print(report)
    assert "inside the joint model" in rich.export_text()
    pytest.importorskip("matplotlib")
    paths = report.save(tmp_path / "new")
    assert [path.name for path in paths] == ["diagnosis.json", "diagnosis.png", "diagnosis.html"]
    content = json.loads(paths[0].read_text())
    assert content["modalities"]["first"]["alone"] == report.modalities["first"].alone
    page = paths[2].read_text()
    assert report.verdict in page
    assert "src='data:image/png;base64," in page
    assert "http" not in page


def test_what_cannot_be_diagnosed_is_refused():
    data = loader("balanced")
    common = {"head": "head", "validation_loader": data}
    encoders = {"first": "first", "second": "second"}
    with pytest.raises(TypeError, match="only once"):
        cggm.diagnose(Model(), encoders, train_loader=iter(data), **common)
    with pytest.raises(ValueError, match="epochs"):
        cggm.diagnose(Model(), encoders, train_loader=data, epochs=0, **common)
    with pytest.raises(ValueError, match="train_loader holds no batch"):
        cggm.diagnose(Model(), encoders, train_loader=[], **common)


def test_a_model_that_returns_a_mapping_asks_for_its_loss():
    class Mapped(Model):
        def forward(self, first, second):
            return {"logits": super().forward(first, second)}

    data = loader("balanced", rows=96)
    common = {"head": "head", "train_loader": data, "validation_loader": data, "epochs": 1}
    encoders = {"first": "first", "second": "second"}
    with pytest.raises(TypeError, match=r"\['logits'\].*pass loss="):
        cggm.diagnose(Mapped(), encoders, **common)
    report = cggm.diagnose(Mapped(), encoders, loss=lambda o, y: F.cross_entropy(o["logits"], y), **common)
    assert report.steps == 3


def test_a_linear_probe_finds_what_is_linear_and_chance_is_the_best_constant():
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    target = (x[:, 0] > 0.6).long()
    task = Classification()
    assert linear_probe(task, (x[:200], target[:200]), (x[200:], target[200:]), 2) > 0.95
    majority = (target[200:] == 0).double().mean().item()
    assert chance(task, target[:200], target[200:], 2) == pytest.approx(majority)
    real = x[:, 0] * 3
    median = F.l1_loss(real[200:], real[:200].median().expand(200)).item()
    assert chance(Regression(), real[:200], real[200:], 1) == pytest.approx(-median, rel=0.02)


@pytest.mark.parametrize(
    ("scores", "joint", "fused", "overall"),
    [
        ({"a": (0.5, 0.5), "b": (0.26, 0.25)}, 0.5, 0.6, "one modality"),
        ({"a": (0.5, 0.5), "b": (0.5, 0.3)}, 0.6, 0.65, "unbalanced"),
        ({"a": (0.5, 0.5), "b": (0.5, 0.3)}, 0.6, 0.6, "starved in vain"),
        ({"a": (0.5, 0.5), "b": (0.5, 0.5)}, 0.6, 0.65, "unbalanced"),
        ({"a": (0.9, 0.9), "b": (0.9, 0.9)}, 0.9, 0.9, "redundant"),
        ({"a": (0.7, 0.7), "b": (0.7, 0.7)}, 0.9, 0.9, "balanced"),
        ({"a": (0.25, 0.25), "b": (0.25, 0.25)}, 0.25, 0.25, "nothing learnt"),
        ({"a": (0.25, 0.25), "b": (0.25, 0.25)}, 0.9, 0.9, "one modality"),
    ],
)
def test_verdicts_from_scores(scores, joint, fused, overall):
    assert judge(scores, joint, fused, chance=0.25, price=1.0, percent=True).overall == overall
