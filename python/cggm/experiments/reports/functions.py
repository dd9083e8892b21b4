"""The table of comparisons on the user's functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..training.functions import FunctionRun
from .intervals import LEVEL, Interval, holm, student_p


def tables(runs: Sequence[FunctionRun]) -> list[Table]:
    """A table per function: the mean of each metric, and its difference to joint training with a 95% interval.

    A `*` marks what Holm's correction over all differences of all tables leaves significant at 5%.
    """
    places = [
        (name, method, metric)
        for name in dict.fromkeys(run.name for run in runs)
        for method in dict.fromkeys(run.method for run in runs if run.name == name)
        for metric in dict.fromkeys(key for run in runs if run.name == name for key in run.metrics)
    ]
    values = {
        (name, method, metric): {
            r.seed: r.metrics[metric]
            for r in runs
            if (r.name, r.method) == (name, method) and metric in r.metrics
        }
        for name, method, metric in places
    }
    gains: dict[tuple[str, str, str], list[float]] = {}
    for name, method, metric in places:
        joint = values.get((name, "joint", metric), {})
        own = values[name, method, metric]
        paired = [own[seed] - joint[seed] for seed in own if seed in joint]
        if method != "joint" and paired:
            gains[name, method, metric] = paired
    p = {place: student_p(differences) for place, differences in gains.items()}
    tested = [place for place, value in p.items() if value is not None]
    adjusted = dict(zip(tested, holm([p[place] for place in tested]), strict=True))
    drawn = {}
    for name, method, metric in places:
        if name not in drawn:
            drawn[name] = Table(
                *("method", "metric", "seeds", "mean", "to joint"),
                title=name,
                title_justify="left",
                box=SIMPLE_HEAD,
            )
        own = values[name, method, metric]
        if not own:
            continue
        difference = ""
        if (name, method, metric) in gains:
            interval = Interval.of(gains[name, method, metric])
            difference = f"{interval.mean:+.4g} [{interval.low:+.4g}, {interval.high:+.4g}]"
            difference += "*" if adjusted.get((name, method, metric), 1.0) < LEVEL else ""
        mean = statistics.fmean(own.values())
        drawn[name].add_row(method, metric, str(len(own)), f"{mean:.4g}", difference)
    return list(drawn.values())
