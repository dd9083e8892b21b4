"""Made data whose label depends on both modalities together: neither says anything about it by itself.

The class is `(u + v) mod 4`, with `u` and `v` uniform in 0 to 3. One modality is a prototype of `u` plus noise, the
other a prototype of `v` plus noise. It is a case against balancing: all that a unimodal loss can teach here is the
training rows by heart.
"""

from __future__ import annotations

import functools

import numpy as np
from torch import nn

from . import models
from .experiment import Experiment, Splits
from .splitting import make_splits, split_rows

CLASSES = 4
WIDTHS = {"first": 20, "second": 30}
FEW, MANY = 512, 4096
NOISE = 2.0


def load(seed: int, rows: int = FEW) -> Splits:
    """Training rows, 500 for validation and 2,000 for the test, drawn by the seed.

    >>> splits = load(0)
    >>> [list(inputs.shape) for inputs in splits.train.inputs], sorted(set(splits.train.target.tolist()))
    ([[512, 20], [512, 30]], [0, 1, 2, 3])
    """
    random = np.random.default_rng(seed)
    parts = (rows, 500, 2000)
    values = [random.integers(CLASSES, size=sum(parts)) for _ in WIDTHS]  # u and v
    prototypes = [1.5 * random.standard_normal((CLASSES, width)) for width in WIDTHS.values()]
    inputs = [
        (each[value] + NOISE * random.standard_normal((len(value), each.shape[1]))).astype(np.float32)
        for each, value in zip(prototypes, values, strict=True)
    ]
    target = sum(values) % CLASSES
    return make_splits(inputs, target, split_rows(len(target), parts, random))


def _model() -> nn.Module:
    return models.ConcatenationModel({m: models.vector_encoder(w) for m, w in WIDTHS.items()}, CLASSES)


def build(rows: int = FEW) -> Experiment:
    """The experiment with few training rows, or with many.

    >>> build().name, build(MANY).name
    ('combination', 'combination-many')
    """
    return Experiment(
        name="combination" if rows == FEW else "combination-many",
        encoders={m: f"encoders.{m}" for m in WIDTHS},
        head="head",
        load=functools.partial(load, rows=rows),
        model=_model,
        classifier=functools.partial(models.classifier, CLASSES),
        learning_rates={"sgd": 0.03, "adam": 2e-3},
        epochs=40 if rows == FEW else 10,
    )
