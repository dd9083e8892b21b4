"""Reading data files of other people, with errors that name the file and say what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def existing(data: Path, *names: str) -> Path:
    """The first path below `data` that exists.

    Args:
        data: a folder.
        names: relative paths to look for, in this order.

    Raises:
        ValueError: none of them exists.
    """
    for name in names:
        if (data / name).exists():
            return data / name
    raise ValueError(f"data: {data} has no {' and no '.join(names)}")


def wrong_content(path: Path, found: object) -> ValueError:
    """The error for a file with unexpected content, to be raised."""
    return ValueError(f"data: {path} cannot be read or has unexpected content: {found}")


def read_matlab(path: Path, shapes: Mapping[str, int | tuple[int | None, ...]]) -> dict[str, NDArray]:
    """Arrays of a MATLAB 5 file.

    Args:
        path: the file.
        shapes: name -> expected shape, None where any size will do; or the number of axes.

    Raises:
        ValueError: no MATLAB 5 file, an array is missing, has another shape, or is not finite.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # SciPy raises errors of many types for damaged files
        raise wrong_content(path, f"not a MATLAB 5 file ({type(error).__name__}: {error})") from error
    for name, shape in shapes.items():
        if name not in content:
            raise wrong_content(path, f"no array {name!r}, it has {[k for k in content if k[0] != '_']}")
        array = content[name]
        if not isinstance(array, np.ndarray):
            raise wrong_content(path, f"{name!r} must be a dense array, found a {type(array).__name__}")
        expected = (None,) * shape if isinstance(shape, int) else shape
        if array.ndim != len(expected) or any(
            e not in (None, n) for e, n in zip(expected, array.shape, strict=True)
        ):
            raise wrong_content(path, f"{name!r} must have shape {list(expected)}, found {list(array.shape)}")
        if array.dtype != object:
            check_numbers(path, name, array)
    return {name: content[name] for name in shapes}


def check_numbers(path: Path, name: str, array: NDArray) -> None:
    """Refuse what is not a dense array of finite numbers, one or more.

    Raises:
        ValueError: another type or dtype, NaN or infinity, no numbers.
    """
    dtype = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise wrong_content(path, f"{name!r} must hold finite numbers, found {dtype} or NaN")
    if not array.size:
        raise wrong_content(path, f"{name!r} must hold numbers, found the shape {list(array.shape)}")
