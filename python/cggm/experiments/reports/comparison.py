"""The table and the picture of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..output import replacing
from .demo_plot import STYLE, optimizer_title
from .intervals import LEVEL, holm
from .report import Row

UNFUSED = ("ensemble", "late-fusion")
# Okabe and Ito's colors, which color-blind readers can tell apart; one marker each, for print.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table per data set: accuracies in percent, differences to joint training with their confidence intervals.

    A `*` marks the differences that Holm's correction over all rows leaves significant at 5%.

    Args:
        rows: as from `report.summarize`.
    """
    tested = [row for row in rows if row.p is not None]
    adjusted = holm([row.p for row in tested])
    claims = {_place(row) for row, p in zip(tested, adjusted, strict=True) if p < LEVEL}
    return [
        _table(name, [row for row in rows if row.dataset == name], claims, len(tested))
        for name in _in_order(rows)
    ]


def _place(row: Row) -> tuple[str, str, str]:
    return row.dataset, row.optimizer, row.method


def _in_order(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.dataset for row in rows))


def _table(name: str, rows: Sequence[Row], claims: set[tuple[str, str, str]], tested: int) -> Table:
    modalities = list(rows[0].probe)
    table = Table(
        title=f"{name}: test accuracy in %, {max(row.seeds for row in rows)} seeds",
        title_justify="left",
        caption="\n".join([_caption(tested), *_ensemble_wins(rows)]),
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    probes = [f"probe\n{modality}" for modality in modalities]
    for heading in ("accuracy", "F1", "to joint", "wins", *probes, "step\ntime", "mem-\nory", "learn.\nrate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        members = [row for row in rows if row.optimizer == optimizer]
        joint = next((row for row in members if row.method == "joint"), None)
        table.add_section()
        table.add_row(f"[bold]{optimizer_title(optimizer)}[/]")
        for row in members:
            table.add_row(
                f"  {row.method}",
                row.accuracy.text(),
                f"{100 * row.f1:.1f}",
                row.interval.text() + ("*" if _place(row) in claims else " ") if row.interval else "",
                f"{row.wins[0]}/{row.wins[1]}" if row.wins else "",
                *(f"{100 * row.probe[m].mean:.1f}" for m in modalities),
                f"{row.relative_time:.2f}x" if row.relative_time is not None else "",
                f"{row.peak_bytes / joint.peak_bytes:.2f}x"
                if joint and joint.peak_bytes and row.peak_bytes
                else "",
                f"{row.learning_rate:.2g}",
            )
        if members[0].alone:
            alone = (f"{100 * members[0].alone[m].mean:.1f}" for m in modalities)
            table.add_row("  alone", "", "", "", "", *alone)
    return table


def _caption(tested: int) -> str:
    return (
        "to joint: mean difference and its 95% confidence interval, paired by seed like the wins; "
        f"* significant at 5% after Holm's correction for {tested} comparisons. F1: averaged over the classes. "
        "Probe: a linear classifier on an encoder's features. Step time (CPU) and peak memory: relative to joint."
    )


def _ensemble_wins(rows: Sequence[Row]) -> list[str]:
    """A line for each optimizer with which the ensemble of unimodal models beats every method that fuses."""
    lines = []
    for ensemble in (row for row in rows if row.method == "ensemble"):
        fused = [r for r in rows if r.optimizer == ensemble.optimizer and r.method not in UNFUSED]
        if fused and ensemble.accuracy.mean >= max(row.accuracy.mean for row in fused):
            lines.append(
                f"{optimizer_title(ensemble.optimizer)}: no method here beats the ensemble of unimodal models, "
                "which fuses nothing."
            )
    return lines


def plot(rows: Sequence[Row], path: Path) -> None:
    """Mean differences to joint training with their confidence intervals: a panel per data set.

    Args:
        rows: as from `report.summarize`, among them joint runs and others.
        path: file to write; its ending says which kind.

    Raises:
        ValueError: no row has a difference to joint training.
    """
    compared = [row for row in rows if row.interval is not None]
    if not compared:
        raise ValueError("rows hold no difference to joint training: run joint and another method")
    from matplotlib import rc_context

    datasets, methods = _in_order(compared), list(dict.fromkeys(row.method for row in compared))
    optimizers = list(dict.fromkeys(row.optimizer for row in compared))
    with rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 2.6 * len(datasets), 1.3 + 0.36 * len(methods)), layout="constrained")
        panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
        for axis, name in zip(panels, datasets, strict=True):
            axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
            for i, optimizer in enumerate(optimizers):
                chosen = [row for row in compared if (row.dataset, row.optimizer) == (name, optimizer)]
                color, marker = LOOKS[i % len(LOOKS)]
                places = [
                    methods.index(row.method) + 0.22 * (i - (len(optimizers) - 1) / 2) for row in chosen
                ]
                means = [100 * row.interval.mean for row in chosen]
                sides = [
                    [100 * (i.mean - i.low) for i in (row.interval for row in chosen)],
                    [100 * (i.high - i.mean) for i in (row.interval for row in chosen)],
                ]
                axis.errorbar(
                    means,
                    places,
                    xerr=[[0 if math.isinf(value) else max(value, 0) for value in side] for side in sides],
                    fmt=marker,
                    color=color,
                    markersize=4.5,
                    elinewidth=1.2,
                    label=optimizer_title(optimizer),
                )
            axis.set_title(name, loc="left")
            axis.set_xlabel("points")
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].invert_yaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        figure.suptitle(
            "Test accuracy compared with joint training, 95% intervals", x=0.02, ha="left", fontweight="bold"
        )
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=160)
