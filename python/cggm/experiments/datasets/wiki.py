"""Wiki: pictures and the sections of Wikipedia articles around them, ten subjects, a fixed test part.

Picture: SIFT histogram (128). Text: tf-idf (1,000). 2,173 rows are for training, of which the seed draws 20% for
validation; 693 are the test part. About 7% of the test texts are near-copies of training texts, and the text alone is
almost as good as both: balancing should change nothing here.

The files are those of the GitHub repository azrealwang/sph: `raw_features.mat` (`I_tr`, `I_te`, `T_tfidf_tr`,
`T_tfidf_te`) and `trainset_txt_img_cat.list`, `testset_txt_img_cat.list` (text, picture, subject from 1 on).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import files, models
from .experiment import Experiment, Splits
from .splitting import make_splits, split_rows, standardize

SUBJECTS = 10
PARTS = ("tr", "te")
LISTS = ("trainset_txt_img_cat.list", "testset_txt_img_cat.list")

Part = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]  # pictures, texts, subjects


@functools.cache
def read(features: Path) -> tuple[Part, Part]:
    """Training and test part: pictures `[N, 128]`, texts `[N, 1000]`, subjects `[N]` from 0 on.

    Raises:
        ValueError: a file is missing or has unexpected content.
    """
    names = {f"{kind}_{part}": 2 for kind in ("I", "T_tfidf") for part in PARTS}
    arrays = files.read_matlab(features, names)
    for kind in ("I", "T_tfidf"):
        widths = [arrays[f"{kind}_{part}"].shape[1] for part in PARTS]
        if widths[0] != widths[1]:
            raise files.wrong_content(
                features, f"'{kind}_tr' and '{kind}_te' must have rows of one width, found {widths}"
            )
    found = []
    for part, name in zip(PARTS, LISTS, strict=True):
        path = files.existing(features.parent, name)
        subjects = _subjects(path)
        pictures, texts = arrays[f"I_{part}"], arrays[f"T_tfidf_{part}"]
        if not len(pictures) == len(texts) == len(subjects):
            sizes = f"{len(pictures)} pictures, {len(texts)} texts"
            raise files.wrong_content(path, f"{len(subjects)} lines, but {features.name} has {sizes}")
        found.append((pictures, texts, subjects))
    return found[0], found[1]


def _subjects(path: Path) -> NDArray[np.int64]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise files.wrong_content(path, error) from error
    subjects = []
    for number, line in enumerate(lines, 1):
        last = line.split("\t")[-1]
        if last not in map(str, range(1, SUBJECTS + 1)):
            raise files.wrong_content(
                path, f"line {number} must end with a subject from 1 to {SUBJECTS}, not {last[:20]!r}"
            )
        subjects.append(int(last) - 1)
    return np.array(subjects, dtype=np.int64)


def load(seed: int, features: Path) -> Splits:
    """The three parts; the seed draws the validation rows."""
    train, test = read(features)
    rows = len(train[2])
    validation = round(rows / 5)
    drawn = split_rows(rows, (rows - validation, validation), np.random.default_rng(seed))
    parts = [*drawn, rows + np.arange(len(test[2]))]
    pictures, texts, subjects = (np.concatenate(both) for both in zip(train, test, strict=True))
    texts = np.float32(texts * texts.shape[1] ** 0.5)  # rows have length 1
    return make_splits([standardize(pictures, drawn[0]), texts], subjects, parts)


def _model(widths: tuple[int, int]) -> nn.Module:
    encoders = {
        name: models.vector_encoder(width) for name, width in zip(("image", "text"), widths, strict=True)
    }
    return models.ConcatenationModel(encoders, SUBJECTS)


def build(data: Path) -> Experiment:
    """The experiment.

    Args:
        data: the folder that holds the three files.

    Raises:
        ValueError: a file is missing or has unexpected content.
    """
    features = files.existing(data, "raw_features.mat", "wiki/raw_features.mat")
    (pictures, texts, _), _ = read(features)
    return Experiment(
        name="wiki",
        encoders={name: f"encoders.{name}" for name in ("image", "text")},
        head="head",
        load=functools.partial(load, features=features),
        model=functools.partial(_model, (pictures.shape[1], texts.shape[1])),
        classifier=functools.partial(models.classifier, SUBJECTS),
        fixed_test=True,
    )
