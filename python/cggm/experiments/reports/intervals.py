"""Confidence intervals and p-values of differences that are paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
LEVEL = 0.05  # p-values below it are significant


class Interval(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """By Student's t, of at least one difference between two runs of one seed; unbounded for a single one.

        >>> [round(value, 2) for value in Interval.of([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
        """
        from scipy.stats import t

        mean, count = statistics.fmean(differences), len(differences)
        if count == 1:
            return cls(mean, -math.inf, math.inf)
        half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
        return cls(mean, mean - half, mean + half)

    def text(self) -> str:
        """`+2.5 [+1.9, +3.1]`, in percentage points.

        >>> Interval(0.025, 0.019, 0.031).text()
        '+2.5 [+1.9, +3.1]'
        """
        mean, low, high = (100 * value for value in self)
        return f"{mean:+.1f}" if math.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def student_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's t test that the mean is 0; None for a single difference.

    >>> round(student_p([1.0, 2.0, 3.0]), 3)
    0.074
    """
    from scipy.stats import t

    if len(differences) == 1:
        return None
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, len(differences) - 1))


def bootstrap(differences: ArrayLike, *, resamples: int = RESAMPLES) -> tuple[Interval, float]:
    """Interval and two-sided p-value where all seeds share their test rows: both seeds and rows are drawn again.

    Student's t over the seeds ignores that other test rows would give other differences.

    Args:
        differences: `[S, N]`, by seed and test row, for instance 1, 0 or -1 where one or both methods are right.
        resamples: number of resamples; the p-value is at least `2 / (resamples + 1)`.

    >>> interval, p = bootstrap([[1, 0, 1, 1], [1, 1, 0, 1]], resamples=999)
    >>> interval.mean, interval.low > 0, p < 0.1
    (0.75, True, True)
    """
    table = np.asarray(differences, dtype=np.float64)
    seeds, rows = table.shape
    generator = np.random.default_rng(0)  # the same table gives the same interval
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    row_weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples) / rows
    means = np.einsum("bn,bn->b", seed_weights @ table, row_weights)  # [resamples]
    low, high = np.quantile(means, (0.025, 0.975))
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Interval(float(table.mean()), float(low), float(high)), min(
        1.0, float(2 * (tail + 1) / (resamples + 1))
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's method: claim those below 5%.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
