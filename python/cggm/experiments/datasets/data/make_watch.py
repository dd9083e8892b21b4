"""Make `watch.npz` from the wheel of the PyPI package `seglearn`.

The package carries a part of David Burns' recordings of shoulder exercises with a smartwatch. To repeat what was
done::

    pip download --no-deps seglearn==1.2.5
    python make_watch.py seglearn-1.2.5-py3-none-any.whl watch.npz

Four samples in a row are averaged (50 Hz become 12.5) and stored in half precision; nothing else is left out.
The source is a pickle, which is why it is read here, once, and not by the library.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "seglearn/data/watch_dataset.npy"


def convert(wheel: Path, target: Path) -> None:
    """Read the recordings out of `wheel` and write `samples`, `lengths`, `exercises`, `subjects`, `names`."""
    with zipfile.ZipFile(wheel) as archive:
        source = np.load(io.BytesIO(archive.read(MEMBER)), allow_pickle=True).item()
    recordings = [np.asarray(series) for series in source["X"]]  # [T, 6] each: acceleration, then rotation
    if source["X_labels"] != ["ax", "ay", "az", "wx", "wy", "wz"]:
        raise ValueError(f"{wheel}: unexpected channels {source['X_labels']}")
    averaged = [series[: len(series) // 4 * 4].reshape(-1, 4, 6).mean(1) for series in recordings]
    np.savez_compressed(
        target,
        samples=np.concatenate(averaged).astype(np.float16),
        lengths=np.array([len(series) for series in averaged], dtype=np.uint16),
        exercises=np.asarray(source["y"], dtype=np.uint8),
        subjects=np.asarray(source["subject"], dtype=np.uint8),
        names=np.array(source["y_labels"]),
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
