"""IEMOCAP: four emotions in dialogue, from text, audio and vision features per utterance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cggm import Classification

from .files import corrupt, existing, finite, h5_dataset, open_h5, read_npy, reading
from .metrics import classification
from .recipe import Data, Recipe, Sample
from .transformer import SequenceClassifier, SequenceModel, Sizes

#: Modality -> file and width of its features.
FILES = {"text": ("L/bert_large.h5", 1024), "audio": ("A/comparE.h5", 130), "vision": ("V/denseface.h5", 342)}
AUDIO_SCALE = "A/comparE_mean_std.h5"
PARTS = ("trn", "val", "tst")
SIZES = Sizes(4, 0.15, 0.15, 0.2, 0.15, 0.2)
FRAMES = 100
CLASSES = 4


class Utterances(Dataset):
    """One part: a sequence `[T, width]` per modality, and the emotion.

    Sequences of more than 100 frames are averaged down to 100.

    Args:
        sequences: per modality, utterance name -> sequence.
        names: of the utterances.
        labels: `[n]`.
    """

    def __init__(self, sequences: list[dict[str, Tensor]], names: list[str], labels: Tensor) -> None:
        self.sequences, self.names, self.labels = sequences, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Sample:
        return tuple(sequences[self.names[i]] for sequences in self.sequences), self.labels[i]


def _read_names(folder: Path, part: str) -> tuple[list[str], Tensor]:
    labels_path, names_path = folder / f"{part}_label.npy", folder / f"{part}_int2name.npy"
    labels = finite(read_npy(labels_path, "labels of a part"), labels_path, "labels")
    names = read_npy(names_path, "names of a part")
    rows = labels.reshape(len(labels), -1) if labels.size else labels
    one_each = rows.ndim == 2 and ((rows == rows.max(1, keepdims=True)).sum(1) == 1).all()
    if labels.ndim != 2 or labels.shape[1:] != (CLASSES,) or not one_each:
        raise corrupt(
            labels_path, "one-hot rows [n, 4]", f"the shape {labels.shape}, or rows without one largest"
        )
    if names.ndim < 1 or len(names) != len(labels) or names.dtype.kind not in "SU" or not names.size:
        raise corrupt(names_path, f"{len(labels)} names", f"the shape {names.shape} of {names.dtype}")
    flat = names.reshape(len(names), -1)[:, 0]
    with reading(names_path, "names in UTF-8"):
        decoded = [n.decode() if isinstance(n, bytes) else str(n) for n in flat]
    return decoded, torch.from_numpy(labels.argmax(1))


def _read_numbers(file: Any, name: str, path: Path) -> NDArray[np.float32]:
    return finite(np.asarray(h5_dataset(file, name, path), dtype=np.float32), path, f"values of {name!r}")


def _read_sequences(path: Path, width: int, wanted: set[str]) -> dict[str, Tensor]:
    found = {}
    with open_h5(path, "a feature sequence per utterance") as file:
        absent = sorted(wanted - set(file))
        if absent:
            raise corrupt(
                path, "a sequence per utterance", f"none for {absent[0]!r} ({len(absent)} are missing)"
            )
        for name in sorted(wanted):
            values = _read_numbers(file, name, path)
            if values.ndim != 2 or values.shape[1] != width or not len(values):
                raise corrupt(path, f"[time, {width}] as {name!r}", f"the shape {values.shape}")
            found[name] = _shorten(torch.from_numpy(values))
    return found


def _shorten(sequence: Tensor) -> Tensor:
    return sequence if len(sequence) <= FRAMES else F.adaptive_avg_pool1d(sequence.T, FRAMES).T


def _standardize(sequences: dict[str, Tensor], path: Path, fold: int) -> dict[str, Tensor]:
    width = FILES["audio"][1]
    with open_h5(path, "mean and standard deviation of the audio") as file:
        if str(fold) not in file:
            raise corrupt(path, f"fold {fold}", f"only {sorted(file)[:20]}")
        mean, std = (_read_numbers(file, f"{fold}/{key}", path) for key in ("mean", "std"))
    if mean.shape != (width,) or std.shape != (width,) or (std < 0).any():
        raise corrupt(
            path, f"mean and std [{width}], std from 0 on", f"the shapes {mean.shape} and {std.shape}"
        )
    mean, std = torch.from_numpy(mean), torch.from_numpy(std)
    return {name: (values - mean) / torch.where(std == 0, 1.0, std) for name, values in sequences.items()}


def read(path: Path, fold: int) -> Data:
    """The three parts of one fold from the folder in which the features circulate.

    Raises:
        ValueError: a file, an utterance or the fold is missing, or a file holds something else.
    """
    target = existing(existing(path, "folder") / "target" / str(fold), f"labels of fold {fold}")
    parts = {part: _read_names(target, part) for part in PARTS}
    wanted = {name for names, _ in parts.values() for name in names}
    sequences = {m: _read_sequences(path / file, width, wanted) for m, (file, width) in FILES.items()}
    sequences["audio"] = _standardize(sequences["audio"], path / AUDIO_SCALE, fold)
    return Data(*(Utterances(list(sequences.values()), *parts[part]) for part in PARTS))


def build(path: Path, *, fold: int = 1) -> Recipe:
    """The paper's experiment on one fold: Adam 1e-3, batches of 64, 30 epochs, clip 0.8, ρ 1.3, λ 0.2.

    Args:
        path: the folder with `A`, `V`, `L` and `target`.
        fold: of the cross-validation.
    """
    model = SequenceModel({m: width for m, (_, width) in FILES.items()}, CLASSES, SIZES)
    return Recipe(
        name="iemocap",
        data=read(path, fold),
        model=model,
        encoders={m: f"encoders.{m}" for m in FILES},
        head="head",
        classifiers={m: SequenceClassifier(model.head, SIZES) for m in FILES},
        task=Classification(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        metrics=classification,
        classifier_group={"lr": 5e-4},
    )
