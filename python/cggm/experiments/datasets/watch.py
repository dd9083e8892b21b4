"""Shoulder exercises recorded by a smartwatch: acceleration and rotation, seven exercises, held-out subjects.

The recordings are David Burns' (BSD 3-clause, see `data/WATCH_LICENSE.txt`). They are split by subject: no subject of
the test part is in the training part.
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import models
from .experiment import Experiment, Splits
from .splitting import make_splits, split_rows

CHANNELS = {"acceleration": slice(0, 3), "rotation": slice(3, 6)}
EXERCISES = 7
SUBJECTS = (5, 2, 3)
FRAMES = 32  # 2.6 seconds at 12.5 Hz


@functools.cache
def windows() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Windows `[N, 6, 32]` of all recordings, their exercises `[N]` and subjects `[N]`."""
    path = resources.files(__package__) / "data" / "watch.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        samples, lengths = archive["samples"].astype(np.float32), archive["lengths"].astype(np.int64)
        exercises, subjects = archive["exercises"].astype(np.int64), archive["subjects"].astype(np.int64)
    ends = np.cumsum(lengths)
    starts = [np.arange(end - n, end - FRAMES + 1, FRAMES) for end, n in zip(ends, lengths, strict=True)]
    counts = [len(s) for s in starts]
    cut = samples[np.concatenate(starts)[:, None] + np.arange(FRAMES)]  # [N, 32, 6]
    return (
        np.ascontiguousarray(cut.transpose(0, 2, 1)),
        np.repeat(exercises, counts),
        np.repeat(subjects, counts),
    )


def load(seed: int) -> Splits:
    """Windows of five, two and three subjects that the seed draws; channels standardized on the training subjects."""
    values, exercises, subjects = windows()
    people = np.unique(subjects)
    parts = [
        np.flatnonzero(np.isin(subjects, people[drawn]))
        for drawn in split_rows(len(people), SUBJECTS, np.random.default_rng(seed))
    ]
    train = values[parts[0]]
    scaled = (values - train.mean((0, 2), keepdims=True)) / train.std((0, 2), keepdims=True)
    return make_splits([scaled[:, channels] for channels in CHANNELS.values()], exercises, parts)


def _model() -> nn.Module:
    return models.ConcatenationModel({name: models.SeriesEncoder(3) for name in CHANNELS}, EXERCISES)


def build() -> Experiment:
    """The experiment: two modalities, `[N, 3, 32]` each.

    >>> experiment = build()
    >>> [list(inputs.shape[1:]) for inputs in experiment.load(0).train.inputs]
    [[3, 32], [3, 32]]
    """
    return Experiment(
        name="watch",
        encoders={name: f"encoders.{name}" for name in CHANNELS},
        head="head",
        load=load,
        model=_model,
        classifier=functools.partial(models.classifier, EXERCISES),
    )
