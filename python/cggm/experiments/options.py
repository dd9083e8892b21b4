"""Types of the command line's options whose help text lists names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import tyro

from .datasets.registry import DATASETS, FROM_FILES
from .training.loop import OPTIMIZERS
from .training.methods import GROUPS, METHODS


def _some_of(names: Iterable[str]) -> Any:
    return Annotated[tuple[str, ...], tyro.conf.arg(help=f"Any of {', '.join(names)}.")]


Methods = _some_of([*METHODS, *GROUPS])
Optimizers = _some_of(OPTIMIZERS)
OneOptimizer = Annotated[str, tyro.conf.arg(help=f"One of {', '.join(OPTIMIZERS)}.")]
DiagnosedDataset = Annotated[
    str | None,
    tyro.conf.arg(
        help=f"One of {', '.join(DATASETS)}; with --data also {', '.join(FROM_FILES)}. "
        "By default avdigits, or none where --experiment is given."
    ),
]
Datasets = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        help=f"Any of {', '.join(DATASETS)}; with --data also {', '.join(FROM_FILES)}. "
        "By default avdigits, or none where --experiment is given."
    ),
]
