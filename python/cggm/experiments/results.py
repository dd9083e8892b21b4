"""What is to be run, and what came of it: plain records that travel between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Job:
    """All methods on one data set with one optimizer and one seed: what one worker does at a time.

    Args:
        build: makes the experiment; called in the worker, so it must be a function that pickles.
        optimizer: a name in `training.OPTIMIZERS`.
        methods: names in `methods.METHODS`.
        seed: of the data, the weights and the batches.
        epochs: instead of the experiment's own.
        history: keep statistics of every step and the test accuracy after every epoch.
    """

    build: Callable[[], Experiment]
    optimizer: str
    methods: tuple[str, ...]
    seed: int
    epochs: int
    history: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one method achieved: accuracies in `[0, 1]` on the test part, median seconds per training step."""

    dataset: str
    optimizer: str
    method: str
    seed: int
    accuracy: float
    probe: dict[str, float]
    seconds_per_step: float


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
    """Everything that a job found."""

    job: Job
    runs: list[Run]
    alone: Alone
    histories: list[History]
