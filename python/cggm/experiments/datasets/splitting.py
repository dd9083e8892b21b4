"""Dividing data into training, validation and test parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def split_rows(
    rows: int, sizes: tuple[int, int, int], generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Disjoint random row numbers for the training, validation and test part.

    Args:
        rows: how many there are.
        sizes: how many each part gets; together no more than `rows`.
        generator: draws.

    >>> [len(part) for part in split_rows(10, (5, 2, 3), np.random.default_rng(0))]
    [5, 2, 3]
    """
    return np.split(generator.permutation(rows)[: sum(sizes)], np.cumsum(sizes)[:-1])
