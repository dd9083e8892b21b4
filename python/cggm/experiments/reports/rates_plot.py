"""The figure of a sweep: gain against joint training over the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..output import replacing
from .demo_plot import STYLE, optimizer_title
from .rates import FACTORS, Cell, at_all_rates, intervals

LINEAR = 10  # points; differences beyond are drawn on a logarithmic scale
COLUMNS = 6
TICKS = (-100, -30, -10, -5, 0, 5, 10, 30, 100)
#: Method -> label, color of Okabe and Ito, marker.
LINES = {
    "default": ("default", "#0072B2", "o"),
    "without bound": ("without bound", "#D55E00", "s"),
    "mmpareto": ("MMPareto", "#009E73", "^"),
    "unimodal": ("unimodal losses", "#CC79A7", "D"),
    "joint-clipped": ("joint, clipped", "#777777", "x"),
}


def plot(cells: Sequence[Cell], path: Path) -> None:
    """A panel per data set and optimizer: mean gain and its 95% interval at a quarter, one and four times the rate.

    Args:
        cells: as from `rates.cells_of`; data sets and optimizers with other than three rates are left out.
        path: file to write; its ending says which kind.

    Raises:
        ValueError: nothing has three rates.
    """
    from matplotlib import rc_context

    places = at_all_rates(cells)
    if not places:
        raise ValueError("no data set has runs at three learning rates")
    datasets = list(dict.fromkeys(name for name, _ in places))
    optimizers = list(dict.fromkeys(name for _, name in places))
    blocks = -(-len(datasets) // COLUMNS)
    columns = -(-len(datasets) // blocks)
    rows = blocks * len(optimizers)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.0 * columns + 0.6, 1.7 * rows + 0.7), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis in panels.flat:
            axis.set_visible(False)
        for (dataset, optimizer), members in places.items():
            block, column = divmod(datasets.index(dataset), columns)
            axis = panels[block * len(optimizers) + optimizers.index(optimizer)][column]
            axis.set_visible(True)
            axis.set_title(f"{dataset}, {optimizer_title(optimizer)}", loc="left")
            _panel(axis, members)
            if column == 0:
                axis.set_ylabel("points to joint")
            axis.tick_params(labelbottom=True)
        drawn = {}
        for axis in panels.flat:
            drawn |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=len(drawn))
        figure.supxlabel("learning rate, relative to joint training's")
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=160)


def _panel(axis: Any, cells: Sequence[Cell]) -> None:
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    for i, (method, (label, color, marker)) in enumerate(LINES.items()):
        found = [(f, x) for f, x in zip(FACTORS, intervals(cells, method), strict=True) if x is not None]
        if not found:
            continue
        shift = 1.06 ** (i - (len(LINES) - 1) / 2)  # so that the intervals stand side by side
        means = [100 * x.mean for _, x in found]
        sides = [[100 * (x.mean - x.low) for _, x in found], [100 * (x.high - x.mean) for _, x in found]]
        axis.errorbar(
            [factor * shift for factor, _ in found],
            means,
            yerr=[[min(max(side, 0), 200) for side in s] for s in sides],  # one seed: unbounded
            color=color,
            marker=marker,
            markersize=3.5,
            linewidth=1.1,
            elinewidth=0.8,
            label=label,
        )
    axis.set_xscale("log", base=4)
    axis.set_xticks(FACTORS, ["1/4", "1", "4"])
    axis.minorticks_off()
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.set_yticks(TICKS, [str(tick) for tick in TICKS])
