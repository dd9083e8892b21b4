"""UCI multiple features: handwritten digits, each described by up to six kinds of features.

The data are Robert Duin's (CC BY 4.0, see `data/UCI_DIGITS_LICENSE.txt`).
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import models
from .experiment import Experiment, Splits
from .splitting import distinct_rows, make_splits, split_rows, standardize

#: View -> number of features.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
THREE = ("kar", "zer", "mor")
DIGITS = 10
ROWS = (600, 300, 1000)


@functools.cache
def handwritten() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Features `[1994, width]` by view, and the digits `[1994]`.

    Six of the 2,000 rows repeat an earlier one in every view. They are dropped, so that no digit is in two parts.
    """
    path = resources.files(__package__) / "data" / "uci_digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        views = {view: archive[view].astype(np.float32) for view in VIEWS}
        digits = archive["digits"].astype(np.int64)
    rows = distinct_rows(list(views.values()))
    return {view: values[rows] for view, values in views.items()}, digits[rows]


def load(seed: int, views: tuple[str, ...] = THREE) -> Splits:
    """600 / 300 / 1,000 rows that the seed draws, standardized on the training rows and clipped to ±6.

    >>> [list(inputs.shape) for inputs in load(0).train.inputs]
    [[600, 64], [600, 47], [600, 6]]
    """
    features, digits = handwritten()
    rows = split_rows(len(digits), ROWS, np.random.default_rng(seed))
    return make_splits([standardize(features[view], rows[0]) for view in views], digits, rows)


def _model(views: tuple[str, ...]) -> nn.Module:
    return models.ConcatenationModel({view: models.vector_encoder(VIEWS[view]) for view in views}, DIGITS)


def build(*views: str) -> Experiment:
    """The experiment with some of the six views.

    Args:
        views: at least two of `fou fac kar pix zer mor`; by default the three that differ most, `kar zer mor`.

    Raises:
        ValueError: fewer than two views, or an unknown one.

    >>> build().name, build(*VIEWS).name, list(build("kar", "mor").encoders)
    ('uci', 'uci-six', ['kar', 'mor'])
    """
    views = views or THREE
    if len(set(views)) < 2 or not set(views) <= set(VIEWS):
        raise ValueError(f"views must be at least two of {list(VIEWS)}, got {list(views)}")
    names = {THREE: "uci", tuple(VIEWS): "uci-six"}
    return Experiment(
        name=names.get(views, "-".join(("uci", *views))),
        encoders={view: f"encoders.{view}" for view in views},
        head="head",
        load=functools.partial(load, views=views),
        model=functools.partial(_model, views),
        classifier=functools.partial(models.classifier, DIGITS),
        learning_rates={"sgd": 0.05, "adam": 3e-3},
        epochs=25,
    )
