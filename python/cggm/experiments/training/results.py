"""What is to be run, and what came of it: plain records that travel between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..datasets.experiment import Experiment
from .methods import Method


@dataclass(frozen=True, kw_only=True)
class Job:
    """Several methods on one data set with one optimizer and one seed: what one worker does at a time.

    Args:
        build: makes the experiment; called in the worker, so it must be a function that pickles.
        optimizer: a name in `training.OPTIMIZERS`.
        methods: name -> method.
        seed: of the data, the weights and the batches.
        epochs: instead of the experiment's own.
        learning_rates: by name of the method; those left out take the experiment's own.
        history: keep statistics of every step and the test accuracy after every epoch.
        only_accuracy: measure neither probes nor memory, and train no encoder alone.
    """

    build: Callable[[], Experiment]
    optimizer: str
    methods: Mapping[str, Method]
    seed: int
    epochs: int
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    history: bool = False
    only_accuracy: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one method achieved: accuracies in `[0, 1]` on the test and the validation part, and at what cost.

    `seconds_per_step` is the median over the steps; `peak_bytes` is what model, optimizer and one step hold at most,
    None where it was not measured.
    """

    dataset: str
    optimizer: str
    method: str
    seed: int
    learning_rate: float
    accuracy: float
    validation: float
    probe: dict[str, float]
    seconds_per_step: float
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Probes of the encoders trained without each other, each with a unimodal classifier of its own."""

    dataset: str
    optimizer: str
    seed: int
    probe: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class History:
    """How one run went: `statistics` name -> `[steps, M]`, `accuracy` `[epochs]` on the test part."""

    optimizer: str
    method: str
    seed: int
    modalities: tuple[str, ...]
    steps_per_epoch: int
    accuracy: NDArray[np.float64]
    statistics: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that a job found; the encoders alone only where the job asked for them."""

    job: Job
    runs: list[Run]
    alone: Alone | None = None
    histories: list[History] = field(default_factory=list)
