"""A live view of a training in the terminal: the newest statistics, and how they came about."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..optimizer import CGGMOptimizerWrapper

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """The values as a line of small bars, from the lowest to the highest; a blank for what is not finite.

    >>> sparkline([0.0, 1.0, 2.0, float("nan")])
    '▁▄█ '
    """
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BARS[int((value - low) * scale)] if abs(value) < float("inf") else " " for value in values
    )


class LiveView:
    """Shows the statistics of a training that runs inside `with LiveView(optimizer) as view`.

    Args:
        optimizer: the wrapper.
        every: steps between two updates; each waits for the device.
        width: updates that a sparkline shows.
        console: where to draw.
        title: above the table, before the number of the step.

    Call `view.update()` after every `optimizer.step()`.
    """

    def __init__(
        self,
        optimizer: CGGMOptimizerWrapper,
        *,
        every: int = 10,
        width: int = 40,
        console: Console | None = None,
        title: str = "",
    ) -> None:
        self.optimizer, self.every, self.title = optimizer, every, title
        self._steps, self._width = 0, width
        self._seen: dict[str, deque[float]] = {}
        self._live = Live(console=console, get_renderable=self.table, auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def update(self) -> None:
        """Count a step; every few of them read the statistics and draw."""
        self._steps += 1
        if self._steps % self.every == 0:
            for name, value in self.optimizer.statistics.scalars().items():
                self._seen.setdefault(name, deque(maxlen=self._width)).append(value)
            self._live.refresh()

    def table(self) -> Table:
        """A row per statistic and modality: its newest value, and a sparkline."""
        table = Table("statistic", "now", "so far", title=f"{self.title} step {self._steps}".strip())
        for name, values in self._seen.items():
            table.add_row(name, f"{values[-1]:.4g}", sparkline(values))
        return table
