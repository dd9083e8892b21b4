"""What to know about a data set before trusting results on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .experiment import Splits

SIMILAR = (0.8, 0.95, 0.99)  # cosine similarities of near-copies
CHUNK = 1024  # rows compared at a time
GROUPED = 0.8  # share of rows whose successor has the same class


class Part(NamedTuple):
    """One part: its rows, classes, the share of the largest class, and of rows whose successor has the same class."""

    name: str
    rows: int
    classes: int
    largest: float
    same_as_next: float


class Overlap(NamedTuple):
    """Test rows against training rows, in one modality or in all together.

    `copies` counts test rows that equal a training row; `similar` holds the shares of test rows whose closest training
    row has a cosine similarity above each of `SIMILAR`.
    """

    modality: str
    copies: int
    similar: tuple[float, ...]


def describe_parts(data: Splits) -> list[Part]:
    """Rows, classes and order of the labels of each part.

    >>> from cggm.experiments.experiment import Split
    >>> part = Split((torch.zeros(5, 2),), torch.tensor([0, 0, 0, 1, 1]))
    >>> describe_parts(Splits(part, part, part))[0]
    Part(name='train', rows=5, classes=2, largest=0.6, same_as_next=0.75)
    """
    found = []
    for name, part in data._asdict().items():
        counts = part.target.bincount().double()
        equal = (part.target.diff() == 0).double()
        largest, same = float(counts.max() / counts.sum()), float(equal.mean()) if len(equal) else 0.0
        found.append(Part(name, len(part.target), int((counts > 0).sum()), largest, same))
    return found


def describe_overlaps(data: Splits, modalities: list[str]) -> list[Overlap]:
    """Copies and near-copies of training rows in the test part, by modality and for all modalities together."""
    single = [(m, data.train.inputs[i], data.test.inputs[i]) for i, m in enumerate(modalities)]
    together = [
        torch.cat([x.flatten(1).double() for x in part.inputs], 1) for part in (data.train, data.test)
    ]
    found = []
    for name, train, test in [*single, ("all together", *together)]:
        train, test = train.flatten(1).double(), test.flatten(1).double()
        known = {row.numpy().tobytes() for row in train}
        copies = sum(row.numpy().tobytes() in known for row in test)
        closest = _closest(train, test)
        similar = tuple(float((closest > bound).double().mean()) for bound in SIMILAR)
        found.append(Overlap(name, copies, similar))
    return found


def _closest(train: Tensor, test: Tensor) -> Tensor:
    """Cosine similarity `[N]` of each test row to the closest training row, both relative to the training mean."""
    center = train.mean(0)
    directions = F.normalize(train - center).T
    return torch.cat([(F.normalize(rows - center) @ directions).amax(1) for rows in test.split(CHUNK)])


def warnings(data: Splits, modalities: list[str]) -> list[str]:
    """One line for each thing about the data that can make results wrong or look too good."""
    parts, overlaps = describe_parts(data), describe_overlaps(data, modalities)
    classes = max(part.classes for part in parts)
    lines = []
    if parts[0].same_as_next > GROUPED:
        lines.append(
            "train part: labels are sorted or grouped; shuffle the rows before they are cut into batches"
        )
    lacking = [part for part in parts if part.classes < classes]
    lines += [f"{part.name} part: has {part.classes} of {classes} classes" for part in lacking]
    *single, whole = overlaps
    if whole.copies:
        lines.append(f"{whole.copies} test rows equal a training row in every modality; drop the duplicates")
    more = [overlap for overlap in single if overlap.copies > whole.copies]
    return lines + [
        f"{overlap.modality}: {overlap.copies} test rows equal a training row" for overlap in more
    ]
