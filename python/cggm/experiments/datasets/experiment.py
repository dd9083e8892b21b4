"""`Experiment`: data and a model by seed, and how to train it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn


class Split(NamedTuple):
    """One part of the data: an input `[N, ...]` per modality, in the order of the modalities, and classes `[N]`."""

    inputs: tuple[Tensor, ...]
    target: Tensor


class Splits(NamedTuple):
    """The training, validation and test part of one seed."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A data set and a model, on which methods are compared: classification, data in memory.

    `cggm compare --experiment mymodule:object` takes one, or a function without arguments that returns one. Worker
    processes import the module again and call that function, so read data in `load`, not at import.

    Args:
        name: name of the data set in results.
        encoders: modality -> dotted name of its encoder in the model, in the order of the model's arguments.
        head: dotted name of the model's output layer.
        load: seed -> data; the same seed must give the same data. Inputs are finite and no float64; classes are int64
            and start at 0.
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
