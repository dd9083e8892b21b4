"""The data sets that come with the library, by name, and how to bring one's own."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable

from . import avdigits, uci, watch
from .experiment import Experiment

DATASETS: dict[str, Callable[[], Experiment]] = {
    "avdigits": avdigits.build,
    "avdigits-noisier": functools.partial(avdigits.build, "noisier"),
    "avdigits-pca": functools.partial(avdigits.build, "pca"),
    "uci": uci.build,
    "uci-six": functools.partial(uci.build, *uci.VIEWS),
    "watch": watch.build,
}


def find_experiment(name: str) -> Callable[[], Experiment]:
    """The function that makes an experiment, which must be one that worker processes can import.

    Args:
        name: one of `DATASETS`, or `module:function` for a function without arguments that returns an `Experiment`;
            the module is looked for in the current folder, too.

    Raises:
        ValueError: nothing of that name, or something else.

    >>> find_experiment("uci")().name, find_experiment("cggm.experiments.datasets.watch:build")().name
    ('uci', 'watch')
    """
    if name in DATASETS:
        return DATASETS[name]
    module, _, function = name.partition(":")
    if not function:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown data set {name!r}{hint}; there are {list(DATASETS)}, or module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # handed on to the worker processes
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"experiment {name!r}: {error}") from error
    experiment = build() if callable(build) else build
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"experiment {name!r} must be a function that returns a cggm.experiments.experiment.Experiment, "
            f"got {type(experiment).__name__}"
        )
    return build
