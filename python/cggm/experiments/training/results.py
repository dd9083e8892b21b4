"""What to run and what was found: plain records that travel between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..datasets.experiment import Experiment
from .methods import Method


@dataclass(frozen=True, kw_only=True)
class Job:
    """Several methods on one data set with one optimizer and one seed: one worker's unit of work.

    Args:
        build: makes the experiment; called in the worker, so it must pickle.
        optimizer: a name in `loop.OPTIMIZERS`.
        methods: name -> method.
        seed: seed of the data, the weights and the batches.
        epochs: number of epochs.
        learning_rates: by name of the method; by default the experiment's own.
        history: keep the statistics of every step and the test accuracy after every epoch.
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
    """What one method achieved with one seed.

    Args:
        accuracy: on the test part, in `[0, 1]`; `f1` is the F1 score averaged over the classes.
        auc: area under the ROC curve, averaged over the classes; `ece` is the expected calibration error. None where
            the outputs allow neither.
        correct: a `0` or `1` for each test row where every seed has the same test rows, else empty.
        validation: accuracy on the validation part; `validation_loss` and `validation_rows` are its loss and size.
        probe: modality -> test accuracy of a linear classifier on the encoder's features.
        seconds_per_step: CPU time, median over blocks of steps.
        peak_bytes: the most that model, optimizer and one step hold; None where it was not measured.
    """

    dataset: str
    optimizer: str
    method: str
    seed: int
    learning_rate: float
    accuracy: float
    f1: float
    correct: str = ""
    validation: float
    validation_loss: float
    validation_rows: int
    probe: dict[str, float]
    seconds_per_step: float
    peak_bytes: int | None
    auc: float | None = None
    ece: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Probes of the encoders trained without each other, each with its own unimodal classifier."""

    dataset: str
    optimizer: str
    seed: int
    probe: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class History:
    """The course of one run: `statistics` name -> `[steps, M]`, `accuracy` `[epochs]` on the test part."""

    optimizer: str
    method: str
    seed: int
    modalities: tuple[str, ...]
    steps_per_epoch: int
    accuracy: NDArray[np.float64]
    statistics: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that a job found; `alone` only where the job asked for it."""

    job: Job
    runs: list[Run]
    alone: Alone | None = None
    histories: list[History] = field(default_factory=list)
