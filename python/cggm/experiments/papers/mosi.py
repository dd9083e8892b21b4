"""CMU-MOSI: sentiment of spoken opinions, from text, audio and vision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from cggm import Regression

from .files import corrupt, read_arrays
from .metrics import sentiment
from .recipe import Data, Recipe, Sample
from .transformer import SequenceClassifier, SequenceModel, Sizes

MODALITIES = ("text", "audio", "vision")
SIZES = Sizes(5, 0.15, 0.15, 0.2, 0.1, 0.1)
PARTS = ("train", "valid", "test")


class Opinions(Dataset):
    """One part: `[50, width]` per modality and the sentiment in `[−3, 3]`.

    Args:
        arrays: modality and `labels` -> float array `[n, 50, width]` and `[n, 1, 1]`.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.inputs = []
        for modality in MODALITIES:
            values = np.asarray(arrays[modality], dtype=np.float32)
            self.inputs.append(torch.from_numpy(np.where(np.isneginf(values), 0, values)))  # silence is log 0
        self.labels = torch.from_numpy(np.asarray(arrays["labels"], dtype=np.float32)).reshape(-1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Sample:
        return tuple(values[i] for values in self.inputs), self.labels[i]


def read(path: Path) -> Data:
    """The three parts from the pickle in which the set circulates, or from the only pickle in a folder.

    Raises:
        ValueError: no such file, another content, a part or a modality missing, arrays that do not fit together.
    """
    if path.is_dir():
        found = sorted(path.glob("*.pkl"))
        if len(found) != 1:
            raise ValueError(
                f"data: {path} must hold one .pkl file, found {len(found)}; name the file itself"
            )
        path = found[0]
    content = read_arrays(path, "pickle with train, valid and test")
    if not isinstance(content, dict):
        raise corrupt(path, f"a {type(content).__name__} instead of a dictionary")
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise corrupt(path, f"no part {missing}, only {sorted(content)}")
    parts = []
    for part in PARTS:
        arrays = content[part]
        lacking = [name for name in (*MODALITIES, "labels") if name not in arrays]
        if lacking:
            raise corrupt(path, f"{part} has no {lacking}, only {sorted(arrays)}")
        shapes = {name: np.shape(arrays[name]) for name in (*MODALITIES, "labels")}
        if any(len(s) != 3 for s in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise corrupt(path, f"{part} has the shapes {shapes}; [n, 50, width] and [n, 1, 1] belong there")
        parts.append(Opinions(arrays))
    return Data(*parts)


def build(path: Path) -> Recipe:
    """The paper's experiment on the file: Adam 1e-3, batches of 64, 30 epochs, clip 0.8, ρ 1.3, λ 0.2.

    Args:
        path: the pickle, or its folder.
    """
    data = read(path)
    widths = {m: x.shape[1] for m, x in zip(MODALITIES, data.train[0][0], strict=True)}
    model = SequenceModel(widths, 1, SIZES)
    return Recipe(
        name="mosi",
        data=data,
        model=model,
        encoders={m: f"encoders.{m}" for m in MODALITIES},
        head="head",
        classifiers=_classifiers(model.head),
        task=Regression(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        metrics=sentiment,
        classifier_group={"lr": 5e-4},
    )


def _classifiers(head: nn.Linear) -> dict[str, nn.Module]:
    return {m: SequenceClassifier(head, SIZES) for m in MODALITIES}
