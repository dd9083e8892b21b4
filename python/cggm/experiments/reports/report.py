"""The demo's table, and the files of all runs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

import cggm
import cggm_ops

from ..output import replacing
from ..training.results import Alone, Outcome, Run
from ..training.runner import cores
from .intervals import Interval, bootstrap, student_p


class Spread(NamedTuple):
    """Mean and sample standard deviation, which is NaN for a single value."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value.

        >>> Spread.of([1.0, 3.0])
        Spread(mean=2.0, std=1.4142135623730951)
        """
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan"))

    def text(self, *, sign: bool = False) -> str:
        """`91.4 ± 1.0`, in percentage points; with a sign if asked for."""
        mean = f"{100 * self.mean:+.1f}" if sign else f"{100 * self.mean:.1f}"
        return mean if self.std != self.std else f"{mean} ± {100 * self.std:.1f}"


class Row(NamedTuple):
    """One method with one optimizer on one data set, over its seeds; differences are paired by seed."""

    dataset: str
    optimizer: str
    method: str
    seeds: int
    accuracy: Spread
    difference: Spread | None  # to joint; None for joint itself and without a joint run of the same seed
    wins: tuple[int, int] | None  # seeds on which the method is better than joint, number of seeds
    probe: dict[str, Spread]
    alone: dict[str, Spread]
    relative_time: float | None  # mean over the seeds of the ratio of a step's time to a joint step's
    interval: Interval | None  # of the mean difference
    p: float | None  # of no difference, not corrected for the number of comparisons
    f1: float  # mean over the seeds, averaged over the classes
    learning_rate: float
    peak_bytes: int | None  # the largest over the seeds


def summarize_outcomes(outcomes: Sequence[Outcome]) -> list[Row]:
    """As `summarize`, of the runs of all outcomes."""
    runs = [run for outcome in outcomes for run in outcome.runs]
    return summarize(runs, [outcome.alone for outcome in outcomes if outcome.alone])


def summarize(runs: Sequence[Run], alone: Sequence[Alone]) -> list[Row]:
    """A row per data set, optimizer and method, in the order in which they first occur."""
    groups: dict[tuple[str, str, str], dict[int, Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.optimizer, run.method), {})[run.seed] = run
    rows = []
    for (dataset, optimizer, method), by_seed in groups.items():
        joint = groups.get((dataset, optimizer, "joint"), {})
        pairs = [(run, joint[seed]) for seed, run in by_seed.items() if seed in joint]
        gains = [run.accuracy - base.accuracy for run, base in pairs]
        compared = gains if method != "joint" else []
        interval, p = compare(pairs) if compared else (None, None)
        apart = [
            a.probe for a in alone if (a.dataset, a.optimizer) == (dataset, optimizer) and a.seed in by_seed
        ]
        probes = [run.probe for run in by_seed.values()]
        rows.append(
            Row(
                dataset=dataset,
                optimizer=optimizer,
                method=method,
                seeds=len(by_seed),
                accuracy=Spread.of([run.accuracy for run in by_seed.values()]),
                difference=Spread.of(compared) if compared else None,
                wins=(sum(gain > 0 for gain in compared), len(compared)) if compared else None,
                probe={m: Spread.of([p[m] for p in probes]) for m in probes[0]},
                alone={m: Spread.of([p[m] for p in apart]) for m in probes[0]} if apart else {},
                relative_time=(
                    statistics.fmean(run.seconds_per_step / base.seconds_per_step for run, base in pairs)
                    if pairs
                    else None
                ),
                interval=interval,
                p=p,
                f1=statistics.fmean(run.f1 for run in by_seed.values()),
                learning_rate=next(iter(by_seed.values())).learning_rate,
                peak_bytes=max((r.peak_bytes for r in by_seed.values() if r.peak_bytes), default=None),
            )
        )
    return rows


def compare(pairs: Sequence[tuple[Any, Any]]) -> tuple[Interval, float | None]:
    """Interval and p-value of the differences in accuracy between the runs of each pair.

    Where every seed has the same test rows, both are of a bootstrap over seeds and rows; else of Student's t.

    Args:
        pairs: two runs of one seed each, with `accuracy` and `correct`.
    """
    if all(run.correct and base.correct for run, base in pairs):
        return bootstrap(
            [[int(a) - int(b) for a, b in zip(r.correct, j.correct, strict=True)] for r, j in pairs]
        )
    gains = [run.accuracy - base.accuracy for run, base in pairs]
    return Interval.of(gains), student_p(gains)


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table: percent, mean ± standard deviation over the seeds."""
    modalities = list(dict.fromkeys(modality for row in rows for modality in row.probe))
    drawn = Table(
        title="Test accuracy in %, mean ± standard deviation over the seeds",
        title_justify="left",
        caption="Differences and wins are paired by seed. Probe: a linear classifier on an encoder's features; "
        "'alone' is the same encoder trained without the others.",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    drawn.add_column("", no_wrap=True)
    probes = [f"probe\n{modality}" for modality in modalities]
    for heading in ("accuracy", "to joint", "wins", *probes, "step\ntime"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    datasets = {row.dataset for row in rows}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.optimizer), []).append(row)
    for (dataset, optimizer), members in groups.items():
        drawn.add_section()
        drawn.add_row(f"[bold]{optimizer}[/]" if len(datasets) == 1 else f"[bold]{dataset}, {optimizer}[/]")
        for row in members:
            drawn.add_row(
                f"  {row.method}",
                row.accuracy.text(),
                row.difference.text(sign=True) if row.difference else "",
                f"{row.wins[0]}/{row.wins[1]}" if row.wins else "",
                *(f"{100 * row.probe[m].mean:.1f}" if m in row.probe else "" for m in modalities),
                f"{row.relative_time:.2f}x" if row.relative_time is not None else "",
            )
        alone = members[0].alone
        if alone:
            drawn.add_row(
                "  alone",
                "",
                "",
                "",
                *(f"{100 * alone[m].mean:.1f}" if m in alone else "" for m in modalities),
            )
    return drawn


def environment() -> dict[str, Any]:
    """Versions and machine behind the figures."""
    return {
        "cggm": cggm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": cggm_ops.backend(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write environment, runs and probes; the file is replaced as a whole, never half written."""
    content = {
        "environment": environment(),
        "runs": [dataclasses.asdict(run) for outcome in outcomes for run in outcome.runs],
        "alone": [dataclasses.asdict(outcome.alone) for outcome in outcomes if outcome.alone],
    }
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
