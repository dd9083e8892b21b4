"""Dividing data into training, validation and test parts, and scaling them by the training part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .experiment import Split, Splits

LARGEST = 6.0  # standard deviations; values further out are clipped


def split_rows(rows: int, sizes: Sequence[int], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Disjoint random row numbers for the training, validation and test part.

    Args:
        rows: number of rows.
        sizes: rows of each part; their sum is at most `rows`.
        generator: source of the random numbers.

    >>> [len(part) for part in split_rows(10, (5, 2, 3), np.random.default_rng(0))]
    [5, 2, 3]
    """
    return np.split(generator.permutation(rows)[: sum(sizes)], np.cumsum(sizes)[:-1])


def split_fifths(rows: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Random row numbers of three parts: 20% for the test, 20% of the rest for validation.

    >>> [len(part) for part in split_fifths(600, np.random.default_rng(0))]
    [384, 96, 120]
    """
    test = round(rows / 5)
    validation = round((rows - test) / 5)
    return split_rows(rows, (rows - test - validation, validation, test), generator)


def distinct_rows(views: Sequence[NDArray]) -> NDArray[np.int64]:
    """Row numbers, ascending, of the first of each group of rows that are equal in every view.

    >>> distinct_rows([np.array([[1.0], [2.0], [1.0]]), np.array([[0.0], [0.0], [0.0]])]).tolist()
    [0, 1]
    """
    _, first = np.unique(np.concatenate(list(views), axis=1), axis=0, return_index=True)
    return np.sort(first)


def standardize(values: NDArray, train: NDArray[np.int64], axes: int | tuple[int, ...] = 0) -> NDArray:
    """Values with mean 0 and standard deviation 1 over the training rows, clipped to ±6; float32.

    Args:
        values: `[N, ...]`.
        train: the training rows; the statistics look at nothing else.
        axes: averaged over, 0 among them.

    >>> standardize(np.array([[0.0], [2.0], [99.0]]), np.array([0, 1])).ravel().tolist()
    [-1.0, 1.0, 6.0]
    """
    part = values[train]
    spread = part.std(axes, keepdims=True)
    scaled = (values - part.mean(axes, keepdims=True)) / np.where(spread > 0, spread, 1)
    return scaled.clip(-LARGEST, LARGEST).astype(np.float32)


def make_splits(
    inputs: Sequence[NDArray], target: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]
) -> Splits:
    """Tensors of the three parts.

    Args:
        inputs: `[N, ...]` of each modality.
        target: `[N]`.
        parts: row numbers of the training, validation and test part.
    """
    tensors, labels = [torch.from_numpy(values) for values in inputs], torch.from_numpy(target)
    return Splits(*(Split(tuple(x[rows].contiguous() for x in tensors), labels[rows]) for rows in parts))


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """The rows of each batch; a last one of less than an eighth of `size` joins the batch before it.

    Batch normalization would take its statistics from a few rows, and keep them for the evaluation that follows.

    >>> [[len(rows) for rows in split_batches(torch.arange(n), 16)] for n in (35, 33)]
    [[16, 16, 3], [16, 17]]
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < size / 8:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
