"""Scene15 and CUB: several feature vectors of one photo, or photo and text features, from a public `.mat` file.

- `cub`: 600 birds of 10 kinds, image features (1,024) and text features (300); `CUB.mat` of the GitHub repository
  Lihong-Liu/CCML.
- `scene15`: 4,485 photos of 15 kinds of scenes, three image descriptors (20, 59, 40); `scene15_mtv.mat` of the GitHub
  repository jiajunsi/RCML. These are views of one photo rather than modalities.

Neither has a fixed split: 20% of the rows drawn by the seed are the test part, 20% of the rest the validation part.
Rows that repeat another one in every view are dropped (18 in Scene15). A file holds `X`, a cell of views
`[features, rows]`, and `gt`, the classes from 1 on.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import files, models
from .experiment import Experiment, Splits
from .splitting import distinct_rows, make_splits, split_fifths, standardize


class Source(NamedTuple):
    """A file: its name, the names of its views, and how many classes it has."""

    file: str
    views: tuple[str, ...]
    classes: int


SOURCES = {
    "cub": Source("CUB.mat", ("image", "text"), 10),
    "scene15": Source("scene15_mtv.mat", ("descriptor_20", "descriptor_59", "descriptor_40"), 15),
}


@functools.cache
def read(path: Path, source: Source) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """The distinct rows of a file: views `[N, width]` each, and classes `[N]` from 0 on.

    Raises:
        ValueError: the file has unexpected content.
    """
    content = files.read_matlab(path, {"X": (1, len(source.views)), "gt": (None, 1)})
    files.check_numbers(path, "gt", content["gt"])
    if set(content["gt"].flat) - set(range(1, source.classes + 1)):
        raise files.wrong_content(path, f"'gt' must hold classes from 1 to {source.classes}")
    classes = content["gt"].ravel().astype(np.int64) - 1
    views = [view.T for view in content["X"].flat]
    for name, view in zip(source.views, views, strict=True):
        files.check_numbers(path, name, view)
        if view.ndim != 2 or len(view) != len(classes):
            raise files.wrong_content(
                path, f"view {name!r} must have {len(classes)} columns, one per class in gt"
            )
    rows = distinct_rows(views)
    return [view[rows] for view in views], classes[rows]


def load(seed: int, path: Path, source: Source) -> Splits:
    """The three parts of one seed, standardized on the training rows."""
    views, classes = read(path, source)
    parts = split_fifths(len(classes), np.random.default_rng(seed))
    return make_splits([standardize(view, parts[0]) for view in views], classes, parts)


def _model(widths: tuple[int, ...], source: Source) -> nn.Module:
    encoders = {view: models.vector_encoder(width) for view, width in zip(source.views, widths, strict=True)}
    return models.ConcatenationModel(encoders, source.classes)


def build(data: Path, name: str) -> Experiment:
    """The experiment on one of the two files.

    Args:
        data: the folder that holds the file.
        name: `"cub"` or `"scene15"`.

    Raises:
        ValueError: the file is missing or has unexpected content.
    """
    source = SOURCES[name]
    path = files.existing(data, source.file, f"{name}/{source.file}")
    widths = tuple(view.shape[1] for view in read(path, source)[0])
    return Experiment(
        name=name,
        encoders={view: f"encoders.{view}" for view in source.views},
        head="head",
        load=functools.partial(load, path=path, source=source),
        model=functools.partial(_model, widths, source),
        classifier=functools.partial(models.classifier, source.classes),
        epochs=40,
    )
