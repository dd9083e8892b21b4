"""Experiments by name: the library's own data sets, data sets read from files, and the user's experiments."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from pathlib import Path

from . import avdigits, combination, multiview, uci, utd_mhad, watch, wiki
from .experiment import Experiment
from .own import load_own

DATASETS: dict[str, Callable[[], Experiment]] = {
    "avdigits": avdigits.build,
    "avdigits-noisier": functools.partial(avdigits.build, "noisier"),
    "avdigits-pca": functools.partial(avdigits.build, "pca"),
    "uci": uci.build,
    "uci-six": functools.partial(uci.build, *uci.VIEWS),
    "watch": watch.build,
    "combination": combination.build,
    "combination-many": functools.partial(combination.build, combination.MANY),
}

#: Data sets that the user has as files: name -> a function of their folder.
FROM_FILES: dict[str, Callable[[Path], Experiment]] = {
    "utd-mhad": utd_mhad.build,
    "utd-mhad-subjects": functools.partial(utd_mhad.build, drawn=True),
    "scene15": functools.partial(multiview.build, name="scene15"),
    "cub": functools.partial(multiview.build, name="cub"),
    "wiki": wiki.build,
}


def find_experiment(name: str, data: Path | None = None) -> Callable[[], Experiment]:
    """A function that makes the experiment of this name, and that worker processes can call.

    Args:
        name: one of `DATASETS` or `FROM_FILES`, or the name of your own experiment, see `own.load_own`.
        data: the folder with the files of a data set in `FROM_FILES`.

    Raises:
        ValueError: an unknown name, missing files, or something that is not an experiment.

    >>> find_experiment("uci")().name, find_experiment("cggm.experiments.datasets.watch:build")().name
    ('uci', 'watch')
    """
    if data is not None and name not in FROM_FILES:
        raise ValueError(f"data is read only by the data sets {list(FROM_FILES)}, got {name!r}")
    if name in DATASETS:
        return DATASETS[name]
    if name in FROM_FILES:
        if data is None:
            source = getattr(FROM_FILES[name], "func", FROM_FILES[name]).__module__
            raise ValueError(
                f"data set {name!r} does not come with the library: pass the folder of its files as --data PATH; "
                f"`python -m pydoc {source}` says where to get them"
            )
        build = functools.partial(FROM_FILES[name], data)
    elif ":" in name:
        build = functools.partial(load_own, name)
    else:
        names = [*DATASETS, *FROM_FILES]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"unknown data set {name!r}{hint}; allowed are {names}, module:object and path/file.py:object"
        )
    build()  # fail now rather than in a worker
    return build
