"""UTD-MHAD: 27 actions of 8 subjects, seen by a Kinect (skeletons) and by a sensor on the wrist or the thigh.

861 trials. Subjects 1, 3 and 5 are the training part, 7 validation, 2, 4, 6 and 8 the test part; or the seed draws
three, one and four subjects. No subject is in two parts. On the fixed parts,
CMC-CMKM (Brinzea et al., IJCNN 2022) reports 76.7% for the inertial sensor and 94.7% for the skeletons.

The files are those of the GitHub repository woo-chia-wei/kinect-sequence-classification: folders `Inertial` and
`Skeleton` with one `.mat` file per trial, `a1_s1_t1_inertial.mat` (`d_iner` `[T, 6]`: acceleration, rotation) and
`a1_s1_t1_skeleton.mat` (`d_skel` `[20, 3, T]`: joints).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import files, models
from .experiment import Experiment, Splits
from .splitting import make_splits, split_rows, standardize

ACTIONS = 27
SUBJECTS = ((1, 3, 5), (7,), (2, 4, 6, 8))
CHANNELS = {"inertial": 6, "skeleton": 60}
FRAMES = {"inertial": 128, "skeleton": 64}
HEAD, HIP_CENTER = 0, 3  # joints

Trials = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


@functools.cache
def read(folder: Path) -> Trials:
    """All trials: sensor `[N, 6, 128]`, skeletons `[N, 60, 64]`, actions `[N]` from 0 on, subjects `[N]`.

    Raises:
        ValueError: there are no trials, or a file is missing or has unexpected content.
    """
    paths = sorted((folder / "Inertial").glob("a*_s*_t*_inertial.mat"))
    if not paths:
        raise ValueError(f"data: {folder / 'Inertial'} has no files like a1_s1_t1_inertial.mat")
    inertial, skeletons, actions, subjects = [], [], [], []
    for path in paths:
        numbers = re.fullmatch(r"a(\d+)_s(\d+)_t\d+_inertial\.mat", path.name)
        if not numbers or not 1 <= int(numbers[1]) <= ACTIONS:
            raise ValueError(
                f"data: {path}: the name must be a<1 to {ACTIONS}>_s<subject>_t<trial>_inertial.mat"
            )
        partner = files.existing(folder, f"Skeleton/{path.name.replace('inertial', 'skeleton')}")
        inertial.append(
            resample(files.read_matlab(path, {"d_iner": (None, 6)})["d_iner"].T, FRAMES["inertial"])
        )
        skeletons.append(pose(files.read_matlab(partner, {"d_skel": (20, 3, None)})["d_skel"]))
        actions.append(int(numbers[1]) - 1)
        subjects.append(int(numbers[2]))
    return (
        np.stack(inertial).astype(np.float32),
        np.stack(skeletons).astype(np.float32),
        np.array(actions),
        np.array(subjects),
    )


def resample(series: NDArray, frames: int) -> NDArray[np.float64]:
    """A series `[C, T]` stretched or compressed to `[C, frames]` by linear interpolation.

    >>> resample(np.array([[0.0, 1.0, 2.0]]), 5).tolist()
    [[0.0, 0.5, 1.0, 1.5, 2.0]]
    """
    place = np.linspace(0, series.shape[1] - 1, frames)
    return np.stack([np.interp(place, np.arange(series.shape[1]), channel) for channel in series])


def pose(joints: NDArray) -> NDArray[np.float64]:
    """Joints `[20, 3, T]` relative to the hip, in units of the first frame's head-to-hip distance: `[60, 64]`.

    Each coordinate's mean over time is removed: what moves tells the action, where it rests tells the person.
    """
    joints = joints - joints[HIP_CENTER : HIP_CENTER + 1]
    joints = joints / max(float(np.linalg.norm(joints[HEAD, :, 0])), 1e-6)
    flat = resample(joints.reshape(-1, joints.shape[2]), FRAMES["skeleton"])
    return flat - flat.mean(1, keepdims=True)


def load(seed: int, folder: Path, drawn: bool) -> Splits:
    """The three parts; with `drawn`, of subjects that the seed draws."""
    inertial, skeletons, actions, subjects = read(folder)
    groups = SUBJECTS
    if drawn:
        people = np.unique(subjects)
        sizes = [len(group) for group in SUBJECTS]
        groups = [people[rows] for rows in split_rows(len(people), sizes, np.random.default_rng(seed))]
    parts = [np.flatnonzero(np.isin(subjects, group)) for group in groups]
    # One scale for all joints: noise of a joint that rests must not grow to the size of a movement.
    scaled = standardize(inertial, parts[0], (0, 2)), standardize(skeletons, parts[0], (0, 1, 2))
    return make_splits(scaled, actions, parts)


def _model() -> nn.Module:
    encoders = {name: models.ConvolutionalEncoder(channels) for name, channels in CHANNELS.items()}
    return models.ConcatenationModel(encoders, ACTIONS)


def build(data: Path, drawn: bool = False) -> Experiment:
    """The experiment: inertial `[N, 6, 128]` and skeleton `[N, 60, 64]`.

    Args:
        data: the folder that holds `Inertial` and `Skeleton`.
        drawn: draw the subjects of each part by the seed, instead of the fixed ones.

    Raises:
        ValueError: a folder is missing.
    """
    folder = files.existing(data, "Inertial", "utd_mhad/Inertial").parent
    return Experiment(
        name="utd-mhad-subjects" if drawn else "utd-mhad",
        encoders={name: f"encoders.{name}" for name in CHANNELS},
        head="head",
        load=functools.partial(load, folder=folder, drawn=drawn),
        model=_model,
        classifier=functools.partial(models.classifier, ACTIONS),
        learning_rates={"sgd": 0.03, "adam": 1e-3},
        batch_size=36,  # divides 324 trials: a last batch of three would upset batch normalization
        epochs=60,
        fixed_test=not drawn,
    )
