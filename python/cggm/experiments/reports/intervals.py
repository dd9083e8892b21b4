"""What differences of seeds that were paired can tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean with its 95% confidence interval by Student's t; unbounded for a single value."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """Of at least one difference, each between two runs of the same seed.

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
        """`+2.5 [+1.9, +3.1]`, in percent points.

        >>> Interval(0.025, 0.019, 0.031).text()
        '+2.5 [+1.9, +3.1]'
        """
        mean, low, high = (100 * value for value in self)
        return f"{mean:+.1f}" if math.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
