"""What an experiment is: data by seed, a model by seed, and how to train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn


class Split(NamedTuple):
    """One part of the data: an input `[N, ...]` per modality, in the order of the modalities, and targets `[N]`."""

    inputs: tuple[Tensor, ...]
    target: Tensor


class Splits(NamedTuple):
    """Training, validation and test part of one seed."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A data set and a model, on which methods are compared: classification, data in memory.

    A function without arguments that returns one is all that `cggm compare --experiment mymodule:build` needs. It and
    what it refers to must be importable, since worker processes call it too; reading data belongs into `load`.

    Args:
        name: how the data set is called in results.
        encoders: modality -> dotted name of its encoder in the model; the order is that of the model's arguments.
        head: dotted name of the model's output layer.
        load: seed -> data. The same seed gives the same data.
        model: makes a model, `model(*inputs) -> [B, C]`, with weights from PyTorch's global generator.
        classifier: makes a unimodal classifier for one encoder's features, `[B, width] -> [B, C]`.
        learning_rates: learning rate by optimizer name (`"sgd"`, `"adam"`).
        batch_size: samples per step.
        epochs: passes over the training part.
        fixed_test: every seed has the same test part, so intervals must include the choice of its rows.
    """

    name: str
    encoders: Mapping[str, str]
    head: str
    load: Callable[[int], Splits]
    model: Callable[[], nn.Module]
    classifier: Callable[[], nn.Module]
    learning_rates: Mapping[str, float] = field(default_factory=lambda: {"sgd": 0.03, "adam": 2e-3})
    batch_size: int = 64
    epochs: int = 20
    fixed_test: bool = False
