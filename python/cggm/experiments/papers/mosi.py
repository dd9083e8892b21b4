"""CMU-MOSI: sentiment of spoken opinions, from text, audio and vision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from cggm import Regression

from .files import corrupt, finite, read_pickle
from .metrics import sentiment
from .pickles import Noted
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

    def __init__(self, arrays: dict[str, NDArray]) -> None:
        self.inputs = [torch.from_numpy(arrays[modality]) for modality in MODALITIES]
        self.labels = torch.from_numpy(arrays["labels"]).reshape(-1)

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
    content = read_pickle(path, "pickle with train, valid and test")
    if not isinstance(content, dict):
        raise corrupt(path, "a dictionary", f"one of type {type(content).__name__}")
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise corrupt(path, f"the parts {list(PARTS)}", f"no part {missing}, only {sorted(content)}")
    parts = {part: _arrays(content[part], path, part) for part in PARTS}
    widths = {part: [arrays[m].shape[1:] for m in MODALITIES] for part, arrays in parts.items()}
    if any(width != widths["train"] for width in widths.values()):
        raise corrupt(path, "the same lengths and widths in every part", widths)
    return Data(*(Opinions(arrays) for arrays in parts.values()))


def _arrays(content: object, path: Path, part: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of one part, checked; minus infinity, the logarithm of silence, becomes 0."""
    names = (*MODALITIES, "labels")
    if not isinstance(content, dict):
        raise corrupt(path, f"a dictionary as {part}", f"one of type {type(content).__name__}")
    lacking = [name for name in names if name not in content]
    if lacking:
        raise corrupt(path, f"{list(names)} in {part}", f"{part} has no {lacking}, only {sorted(content)}")
    arrays = {}
    for name in names:
        what, noted = f"an array of numbers as {name} of {part}", content[name]
        if not isinstance(noted, Noted):
            raise corrupt(path, what, f"one of type {type(noted).__name__}")
        try:
            values = noted.array().astype(np.float32)
        except ValueError as error:
            raise corrupt(path, what, error) from error
        if name != "labels":
            values[np.isneginf(values)] = 0
        arrays[name] = finite(values, path, f"{name} of {part}")
    shapes = {name: values.shape for name, values in arrays.items()}
    n = len(arrays["labels"]) if shapes["labels"] else 0
    fits = all(len(s) == 3 and s[0] == n and 0 not in s for s in shapes.values())
    if not fits or shapes["labels"] != (n, 1, 1):
        raise corrupt(
            path, f"[n, 50, width] per modality and labels [n, 1, 1] in {part}", f"the shapes {shapes}"
        )
    return arrays


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
