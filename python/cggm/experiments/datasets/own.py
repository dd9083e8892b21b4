"""The user's own experiments: `module:object` and `path/file.py:object`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .experiment import Experiment


def load_function(name: str) -> Callable[..., Any] | None:
    """The user's function `train(wrap, seed) -> metrics`; None if the object is something else.

    Raises:
        ValueError: the module or object is missing, or raises an error.
    """
    with _users_code(name) as find:
        found = find()
    if not inspect.isroutine(found):
        return None
    required = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    return found if [p.name for p in required] == ["wrap", "seed"] else None


@contextlib.contextmanager
def _users_code(name: str) -> Iterator[Callable[[], Any]]:
    """A function that finds the object of this name, in a block whose errors become one line about it."""
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise ValueError(f"experiment {name!r} must be module:object or path/file.py:object")
    file = Path(module) if module.endswith(".py") else None

    def find() -> Any:
        return getattr(importlib.import_module(module) if file is None else _import_file(file), attribute)

    try:
        with _finding_also(os.getcwd() if file is None else str(file.resolve().parent)):
            yield find
    except Exception as error:  # it runs the user's code
        raise ValueError(f"experiment {name!r}: {explain(error)}") from error


def load_own(name: str) -> Experiment:
    """The user's experiment; the user's module runs, so it must be trusted.

    Args:
        name: `module:object` or `path/file.py:object`, where the object is an `Experiment`, or a function without
            arguments that returns one. The module may lie in the current folder, which is searched only while the
            module is imported and the function runs.

    Raises:
        ValueError: the module or object is missing, raises an error, or is not an experiment.

    >>> load_own("cggm.experiments.datasets.uci:build").name
    'uci'
    """
    with _users_code(name) as find:
        found = find()
        experiment = found() if callable(found) else found
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"experiment {name!r} must be a cggm.experiments.experiment.Experiment or a function that returns one, "
            f"got {type(experiment).__name__}"
        )
    return experiment


def explain(error: Exception) -> str:
    """One line about an error in the user's code: type, place and message."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename[0] != "<" and f.filename != __file__
    ]
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {' '.join(str(error).split())}"


def _import_file(path: Path) -> ModuleType:
    known = f"cggm_experiment_{path.stem}"
    if known in sys.modules and sys.modules[known].__file__ == str(path):
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses look there for their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known]
        raise
    return module


@contextlib.contextmanager
def _finding_also(folder: str) -> Iterator[None]:
    """Look for modules in the folder, too; last, so that nothing in it hides an installed module."""
    sys.path.append(folder)
    try:
        yield
    finally:  # the last of its kind: the user's module may have changed the list
        if folder in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]
