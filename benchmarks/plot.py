"""Draws what `make bench` measured: `python benchmarks/plot.py benchmark.json` writes benchmark.png beside it.

One panel per benchmark, one row per case, one mark per alternative. Right of the line at 1, ours is faster.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

# Okabe and Ito's colors, which people with color blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


@dataclass(frozen=True)
class Comparison:
    """One row: the benchmark, the parameters of the case, and each alternative's time divided by ours."""

    benchmark: str
    case: str
    ratios: dict[str, float]


def read_comparisons(path: Path) -> list[Comparison]:
    """Read the comparisons in a JSON file of pytest-benchmark, in its order.

    Raises:
        ValueError: the file cannot be read, is not a result of `make bench`, or compares nothing.
    """
    try:
        benchmarks = json.loads(path.read_text())["benchmarks"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a result of `make bench`: {type(error).__name__}: {error}"
        ) from error
    found = []
    for benchmark in benchmarks:
        name, _, case = benchmark["name"].removesuffix("]").partition("[")
        if "ratio" in benchmark["extra_info"]:
            ratios = benchmark["extra_info"]["ratio"]
            found.append(Comparison(name.removeprefix("test_").replace("_", " "), case or "-", ratios))
    if not found:
        raise ValueError(f"{path} holds no comparison: run `make bench` to make one")
    return found


def plot(comparisons: list[Comparison], path: Path) -> None:
    """Draw at least one comparison and write the picture to `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(c.benchmark for c in comparisons))
    panels = [[c for c in comparisons if c.benchmark == name] for name in names]
    heights = [len(panel) + 2.0 for panel in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.26 * sum(heights) + 0.5), layout="constrained")
        axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, name, panel in zip(axes, names, panels, strict=True):
            for index, alternative in enumerate(dict.fromkeys(a for c in panel for a in c.ratios)):
                rows = [(c.ratios[alternative], y) for y, c in enumerate(panel) if alternative in c.ratios]
                axis.plot(
                    *zip(*rows, strict=True), "o", color=COLOURS[index % len(COLOURS)], label=alternative
                )
            axis.axvline(1, color="#000000", linewidth=0.8)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("{x:g}")
            axis.set_yticks(range(len(panel)), [c.case for c in panel])
            axis.set_ylim(len(panel) - 0.5, -0.5)
            axis.set_title(name, loc="left")
            axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.2)
        axes[-1].set_xlabel("time of the alternative / time of ours")
        figure.savefig(path, dpi=120)


def main() -> None:
    """Draw the file named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/plot.py benchmark.json")
    path = Path(sys.argv[1])
    try:
        comparisons = read_comparisons(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    plot(comparisons, path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
