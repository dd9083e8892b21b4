"""Baselines that fuse no features, and rates per encoder, against training written out by hand."""

import pytest
import torch
from test_compare import build_balanced, make_run
from torch import nn
from torch.nn import functional as F

from cggm.experiments.datasets import avdigits
from cggm.experiments.reports import comparison, report
from cggm.experiments.training.baselines import Ensemble, LateFusion
from cggm.experiments.training.loop import run_job
from cggm.experiments.training.methods import METHODS, choose_methods
from cggm.experiments.training.results import Job


def two_models():
    torch.manual_seed(0)
    return [nn.Linear(3, 4), nn.Linear(2, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)]


def job(*names, **changes):
    settings = {
        "build": build_balanced,
        "optimizer": "sgd",
        "methods": choose_methods(names),
        "seed": 0,
        "epochs": 2,
    }
    return Job(**{**settings, **changes})


def test_an_ensemble_averages_probabilities_and_late_fusion_logits():
    encoders, classifiers = two_models()
    inputs = torch.randn(5, 3), torch.randn(5, 2)
    logits = [c(e(x)) for e, c, x in zip(encoders, classifiers, inputs, strict=True)]
    averaged = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    torch.testing.assert_close(Ensemble(encoders, classifiers)(*inputs).exp(), averaged)
    torch.testing.assert_close(LateFusion(encoders, classifiers)(*inputs), (logits[0] + logits[1]) / 2)


def test_models_of_an_ensemble_learn_alone_and_those_of_late_fusion_together():
    encoders, classifiers = two_models()
    inputs, target = (torch.randn(5, 3), torch.randn(5, 2)), torch.tensor([0, 1, 0, 1, 1])
    (alone,) = torch.autograd.grad(
        F.cross_entropy(classifiers[0](encoders[0](inputs[0])), target), encoders[0].weight
    )
    for kind, same in ((Ensemble, True), (LateFusion, False)):
        (gradient,) = torch.autograd.grad(
            kind(encoders, classifiers).loss(inputs, target), encoders[0].weight
        )
        assert torch.allclose(gradient, alone) == same


def test_encoders_alone_are_those_of_the_ensemble():
    outcome = run_job(job("joint", "ensemble", build=avdigits.build, epochs=1))
    without = run_job(job("joint", build=avdigits.build, epochs=1))
    ensemble = outcome.runs[1]
    assert outcome.alone.probe == ensemble.probe == without.alone.probe
    assert outcome.runs[0].probe != ensemble.probe


def test_an_ensemble_of_a_job_is_one_trained_by_hand():
    experiment = build_balanced()
    data = experiment.load(0)
    torch.manual_seed(0)
    model = experiment.model()
    encoders = [model.left, model.right]
    classifiers = [experiment.classifier() for _ in encoders]
    probabilities = []
    for i, members in enumerate(zip(encoders, classifiers, strict=True)):
        alone = nn.Sequential(*members)
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.03, momentum=0.9)
        batches = torch.Generator().manual_seed(0)
        for _ in range(2):
            for rows in torch.randperm(40, generator=batches).split(10):
                optimizer.zero_grad()
                F.cross_entropy(alone(data.train.inputs[i][rows]), data.train.target[rows]).backward()
                optimizer.step()
        probabilities.append(alone(data.test.inputs[i]).softmax(1))
    expected = (sum(probabilities).argmax(1) == data.test.target).double().mean().item()
    (run,) = run_job(job("ensemble", only_accuracy=True)).runs
    assert run.accuracy == expected


def test_faster_encoders_have_one_factor_for_all():
    assert METHODS["joint-faster-encoders"].encoder_rates == 4.0
    names = ("joint", "joint-faster-encoders", "encoder-rates")
    runs = run_job(job(*names, only_accuracy=True, epochs=5)).runs
    assert [run.method for run in runs][2:] == [
        "joint, rates 0.25 1",
        "joint, rates 4 1",
        "joint, rates 1 0.25",
        "joint, rates 1 4",
    ]
    assert len({run.validation_loss for run in runs}) == len(runs)


@pytest.mark.parametrize(("ensemble", "said"), [(0.80, True), (0.60, False)])
def test_the_table_says_where_the_ensemble_wins(ensemble, said):
    accuracies = {"joint": 0.5, "late-fusion": 0.9, "default": 0.7, "ensemble": ensemble}
    runs = [make_run(method, seed, accuracy) for method, accuracy in accuracies.items() for seed in (0, 1)]
    (table,) = comparison.tables(report.summarize(runs, []))
    assert ("SGD: no method here beats the ensemble" in table.caption) == said
