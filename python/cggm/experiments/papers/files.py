"""Finding and reading data sets, with errors that say which file, what was expected and what was found.

Data files are not trusted: they may be broken or malicious. The readers here run no code from a file, stay inside the
data folder, and use no more memory than the limits below.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pickles

FILE_BYTES = 2**32  # of a file that is read as a whole
ARRAY_VALUES = 2**28  # of an array in a file; a patient of BraTS has an eighth of that
NAME_CHARACTERS = 500
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # Pillow runs external programs for some other formats


class DataError(ValueError):
    """A data file is missing, broken or of another kind; the message is one printable line."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message[:1000])
        super().__init__("data: " + " ".join(line.split()))


def needs(module: str, package: str | None = None) -> ModuleType:
    """An optional module, imported now.

    Args:
        module: its name.
        package: what it is called in the package index, if otherwise.

    Raises:
        ValueError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f'this experiment needs {package or module}: pip install "cggm[papers]"') from error


def existing(path: Path, what: str) -> Path:
    """The path, if something is there.

    Raises:
        DataError: nothing is.
    """
    with reading(path, f"a {what}"):
        if not path.exists():
            raise DataError(f"no {what} at {path}")
    return path


def corrupt(path: Path, expected: str, found: object) -> DataError:
    """Create the error for a file with unexpected content."""
    return DataError(f"{path} cannot be read or holds something else: expected {expected}, found {found}")


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Convert every error of a decoder on a broken file to a `DataError` that names the file.

    Decoders raise anything: beside `OSError`, Pillow raises `SyntaxError`, gzip `zlib.error`, h5py `RuntimeError`, and
    all of them `MemoryError` for a size that the file makes up.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise corrupt(path, expected, f"{type(error).__name__}: {error}") from error


def inside(folder: Path, name: object, path: Path) -> Path:
    """Resolve a file name from a data file, relative to the data folder.

    Args:
        folder: which the file must not leave, neither by `..` nor through a symbolic link.
        name: of the file, as read.
        path: of the data file that holds the name, for the message.

    Raises:
        DataError: the name is no string, is empty or absolute, or leads out of the folder.
    """
    expected = "the name of a file inside the data folder"
    with reading(path, expected):
        good = isinstance(name, str) and len(name) <= NAME_CHARACTERS and "\0" not in name
        relative = Path(name) if good else Path()
        if relative.is_absolute() or ".." in relative.parts or relative == Path():
            raise corrupt(path, expected, repr(name)[:200])
        if not (folder / relative).resolve().is_relative_to(folder.resolve()):
            raise corrupt(path, expected, f"{name!r}, a symbolic link that leaves it; put the file there")
    return folder / relative


def _content(path: Path, what: str) -> bytes:
    size = existing(path, what).stat().st_size
    if not path.is_file() or size > FILE_BYTES:
        found = f"{size} bytes" if path.is_file() else "something that is no file"
        raise corrupt(path, f"a {what} of at most {FILE_BYTES} bytes", found)
    return path.read_bytes()


def read_text(path: Path, what: str) -> str:
    """The content of a UTF-8 file.

    Raises:
        DataError: it is missing, too large or something else.
    """
    with reading(path, f"a {what} in UTF-8"):
        return _content(path, what).decode("utf-8-sig")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is missing or no JSON.
    """
    text = read_text(path, what)
    with reading(path, f"a {what} in JSON"):
        return json.loads(text)


def read_pickle(path: Path, what: str) -> Any:
    """The content of a pickle of NumPy arrays, each as a `pickles.Noted`; see `pickles.load`.

    Raises:
        DataError: it is missing, no pickle, or holds other objects.
    """
    with reading(path, f"a {what}"):
        return pickles.load(_content(path, what))


def read_npy(path: Path, what: str) -> NDArray:
    """The array of a `.npy` file, which never holds objects.

    Raises:
        DataError: it is missing or something else.
    """
    with reading(path, f"a .npy file with {what}"):
        existing(path, what)
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a size that the file does not have
        if not isinstance(found, np.ndarray) or found.nbytes > FILE_BYTES:
            raise ValueError(f"an archive of arrays, or more than {FILE_BYTES} bytes")
        return np.array(found)


@contextlib.contextmanager
def open_h5(path: Path, what: str) -> Iterator[Any]:
    """An HDF5 file, open for reading.

    Raises:
        DataError: it is missing or no HDF5 file.
    """
    h5py = needs("h5py")
    with reading(path, f"an HDF5 file with {what}"), h5py.File(existing(path, what), "r") as file:
        yield file


def h5_dataset(file: Any, name: str, path: Path) -> Any:
    """A numeric HDF5 data set whose values are all stored in this file.

    Args:
        file: from `open_h5`.
        name: of the data set, with `/` between groups.
        path: of the file, for the message.

    Raises:
        DataError: there is none; it, or a group on the way, is a soft or external link; it is virtual, or has its
            values in another file; it is too large, or holds something else than numbers.
    """
    h5py, found = needs("h5py"), file
    for part in name.split("/"):
        link = found.get(part, getlink=True) if part and isinstance(found, h5py.Group) else None
        if type(link) is not h5py.HardLink:
            raise corrupt(path, f"a data set {name!r} in the file itself", _kind(link))
        found = found[part]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf":
        raise corrupt(path, f"numbers at {name!r}", getattr(found, "dtype", "a group"))
    if found.is_virtual or found.external:
        raise corrupt(path, f"a data set {name!r} in the file itself", "one whose values are in other files")
    if found.shape is None or max(map(math.prod, (found.shape, found.chunks or ()))) > ARRAY_VALUES:
        shapes = f"the shape {found.shape} in chunks of {found.chunks}"
        raise corrupt(path, f"at most {ARRAY_VALUES} values at {name!r}", shapes)
    return found


def _kind(link: object) -> str:
    return "none" if link is None else f"a link ({type(link).__name__})"


def read_image(path: Path, side: int) -> NDArray[np.float32]:
    """An image in color, resized to `[side, side, 3]`, from 0 to 255.

    Raises:
        DataError: it is missing or no image.
    """
    image = needs("PIL.Image", "pillow")
    with reading(path, f"an image ({', '.join(IMAGE_FORMATS)})"):
        with image.open(existing(path, "image"), formats=IMAGE_FORMATS) as file:
            small = file.convert("RGB").resize((side, side), image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.float32)


def finite(values: NDArray, path: Path, what: str) -> NDArray:
    """The values, if each of them is a finite number.

    Raises:
        DataError: one is not.
    """
    if values.dtype.kind not in "biuf":
        raise corrupt(path, f"numbers as {what}", f"the dtype {values.dtype}")
    if not np.isfinite(values).all():
        raise corrupt(path, f"finite {what}", "NaN or infinity")
    return values
