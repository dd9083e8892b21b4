"""IEMOCAP: four emotions in dialogue, from text, audio and vision features per utterance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cggm import Classification

from .files import corrupt, existing, needs
from .metrics import classification
from .recipe import Data, Recipe, Sample
from .transformer import SequenceClassifier, SequenceModel, Sizes

#: Modality -> file and width of its features.
FILES = {"text": ("L/bert_large.h5", 1024), "audio": ("A/comparE.h5", 130), "vision": ("V/denseface.h5", 342)}
AUDIO_SCALE = "A/comparE_mean_std.h5"
PARTS = ("trn", "val", "tst")
SIZES = Sizes(4, 0.15, 0.15, 0.2, 0.15, 0.2)
FRAMES = 100


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
    labels_path = existing(folder / f"{part}_label.npy", "labels of a part")
    names_path = existing(folder / f"{part}_int2name.npy", "names of a part")
    try:
        labels, names = np.load(labels_path), np.load(names_path)
    except (ValueError, OSError, EOFError) as error:
        raise corrupt(folder, error) from error
    if labels.ndim != 2 or len(labels) != len(names):
        raise corrupt(
            labels_path, f"shape {labels.shape} for {len(names)} names; one-hot rows [n, 4] belong there"
        )
    flat = names.reshape(len(names), -1)[:, 0]
    return [n.decode() if isinstance(n, bytes) else str(n) for n in flat], torch.from_numpy(labels.argmax(1))


def _read_sequences(path: Path, width: int, wanted: set[str]) -> dict[str, Tensor]:
    h5py = needs("h5py")
    existing(path, "feature file")
    try:
        with h5py.File(path) as file:
            absent = sorted(wanted - set(file))
            if absent:
                raise corrupt(path, f"no utterance {absent[0]!r} and {len(absent) - 1} more")
            found = {name: np.asarray(file[name], dtype=np.float32) for name in wanted}
    except OSError as error:
        raise corrupt(path, error) from error
    for name, values in found.items():
        if values.ndim != 2 or values.shape[1] != width:
            raise corrupt(path, f"{name!r} of shape {values.shape}; [time, {width}] belongs there")
    return {name: _shorten(torch.from_numpy(values)) for name, values in found.items()}


def _shorten(sequence: Tensor) -> Tensor:
    return sequence if len(sequence) <= FRAMES else F.adaptive_avg_pool1d(sequence.T, FRAMES).T


def _standardise(sequences: dict[str, Tensor], path: Path, fold: int) -> dict[str, Tensor]:
    with needs("h5py").File(existing(path, "mean and standard deviation of the audio")) as file:
        if str(fold) not in file:
            raise corrupt(path, f"no fold {fold}, only {sorted(file)}")
        mean, std = (
            torch.from_numpy(np.asarray(file[f"{fold}/{key}"], dtype=np.float32)) for key in ("mean", "std")
        )
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
    sequences["audio"] = _standardise(sequences["audio"], path / AUDIO_SCALE, fold)
    return Data(*(Utterances(list(sequences.values()), *parts[part]) for part in PARTS))


def build(path: Path, *, fold: int = 1) -> Recipe:
    """The paper's experiment on one fold: Adam 1e-3, batches of 64, 30 epochs, clip 0.8, ρ 1.3, λ 0.2.

    Args:
        path: the folder with `A`, `V`, `L` and `target`.
        fold: of the cross-validation.
    """
    model = SequenceModel({m: width for m, (_, width) in FILES.items()}, 4, SIZES)
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
