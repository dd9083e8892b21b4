"""Finding and reading data sets, with errors that say what was expected and where."""

from __future__ import annotations

import importlib
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any


def needs(module: str, package: str | None = None) -> ModuleType:
    """An optional module, imported now.

    Args:
        module: its name.
        package: what it is called in the package index, if otherwise.

    Raises:
        ValueError: it is not installed; the message says how to mend that.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f'this experiment needs {package or module}: pip install "cggm[papers]"') from error


def existing(path: Path, what: str) -> Path:
    """The path, if something is there.

    Raises:
        ValueError: nothing is.
    """
    if not path.exists():
        raise ValueError(f"data: no {what} at {path}")
    return path


def corrupt(path: Path, found: object) -> ValueError:
    """The error for a file that is not what it should be, to be raised."""
    return ValueError(f"data: {path} cannot be read or holds something else: {found}")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is missing or no JSON.
    """
    try:
        return json.loads(existing(path, what).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise corrupt(path, error) from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; a file from the internet shall run nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar")
        if arrays or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def read_arrays(path: Path, what: str) -> Any:
    """The content of a pickle of NumPy arrays in dictionaries, lists and tuples.

    Raises:
        ValueError: it is missing, no pickle, or holds other objects.
    """
    with existing(path, what).open("rb") as file:
        try:
            return _ArraysOnly(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise corrupt(path, error) from error
