"""The time of a training step with each policy, as a multiple of a joint step on the same batch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from harness import compare
from torch import nn
from torch.nn import functional as F

from cggm import Encoder
from cggm.experiments.datasets.registry import DATASETS
from cggm.experiments.training.loop import OPTIMIZERS, Training
from cggm.experiments.training.methods import METHODS

SMALL = ("unimodal", "dropout", "default", "cggm", "norm-equalization", "feature-pareto", "mmpareto")
LARGE = ("default", "cggm", "mmpareto")
LEARNING_RATE = 1e-5  # so small that the weights hardly change while a step is timed


class ResNetPair(nn.Module):
    """Two ResNet-18s whose pooled features are concatenated for a head."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=64
        )
        self.encoders = nn.ModuleDict({name: transformers.ResNetModel(config) for name in ("audio", "image")})
        self.head = nn.Linear(1024, 31)

    def forward(self, audio, image):
        pooled = [self.encoders["audio"](audio), self.encoders["image"](image)]
        return self.head(torch.cat([output.pooler_output.flatten(1) for output in pooled], 1))


class Pooled(nn.Module):
    """A unimodal classifier of pooled feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(512, 1024), nn.Linear(1024, 31)

    def forward(self, features):
        return self.output(self.hidden(features.flatten(1)).relu())


def steps(model, classifiers, encoders, batch, optimizer, names):
    """Return one training step on a copy of the model for each method."""

    def start(name):
        own = copy.deepcopy(classifiers)
        wrapping = {
            "encoders": {name: Encoder(path, classifier=own[name]) for name, path in encoders.items()},
            "head": "head",
        }
        training = Training(
            copy.deepcopy(model),
            METHODS[name],
            OPTIMIZERS[optimizer],
            wrapping,
            learning_rate=LEARNING_RATE,
            seed=0,
        )
        return lambda: training.step(*batch)

    return {name: start(name) for name in names}


def by_hand(model, classifiers, encoders, batch, optimizer):
    """Return a step with unimodal losses written without this library."""
    model, own = copy.deepcopy(model), nn.ModuleDict(copy.deepcopy(classifiers))
    stepped = OPTIMIZERS[optimizer]([*model.parameters(), *own.parameters()], LEARNING_RATE)
    features = {}
    for name, path in encoders.items():
        keep = partial(features.__setitem__, name)
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, keep=keep: keep(output)
        )
    inputs, target = batch

    def step():
        stepped.zero_grad()
        loss = F.cross_entropy(model(*inputs), target)
        loss = loss + sum(F.cross_entropy(own[name](features[name]), target) for name in encoders)
        loss.backward()
        stepped.step()

    return step


def ratios_to_joint(benchmark, alternatives, rounds):
    compare(benchmark, alternatives.pop("joint"), alternatives, rounds=rounds)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dataset", ["avdigits", "uci", "watch"])
def test_price_on_a_small_model(benchmark, dataset, optimizer):
    """Compare with joint training, on the model and data of `cggm compare`."""
    experiment = DATASETS[dataset]()
    torch.manual_seed(0)
    model = experiment.model()
    classifiers = {name: experiment.classifier() for name in experiment.encoders}
    train = experiment.load(0).train
    batch = [x[: experiment.batch_size] for x in train.inputs], train.target[: experiment.batch_size]
    names = ("joint", *SMALL)
    made = steps(model, classifiers, dict(experiment.encoders), batch, optimizer, names)
    made["unimodal losses by hand"] = by_hand(model, classifiers, experiment.encoders, batch, optimizer)
    ratios_to_joint(benchmark, made, rounds=61)


def test_price_on_a_pair_of_resnets(benchmark):
    """Compare with joint training, on two ResNet-18s with SGD and batches of 8 pairs of 64 x 64 pixels."""
    torch.manual_seed(0)
    model = ResNetPair()
    encoders = {name: f"encoders.{name}" for name in model.encoders}
    batch = [torch.randn(8, 3, 64, 64) for _ in encoders], torch.randint(31, (8,))
    classifiers = {name: Pooled() for name in encoders}
    ratios_to_joint(benchmark, steps(model, classifiers, encoders, batch, "sgd", ("joint", *LARGE)), rounds=7)
