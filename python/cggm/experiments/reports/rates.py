"""Methods against joint training over data sets, optimizers and learning rates: runs, cells and their table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..output import replacing
from .intervals import Interval
from .report import compare, environment

FACTORS = (0.25, 1.0, 4.0)  # of the experiment's own learning rate


class RateRun(NamedTuple):
    """One training: what it was, its test accuracy, and which test rows were right where all seeds share them."""

    dataset: str
    optimizer: str
    learning_rate: float
    method: str
    seed: int
    accuracy: float
    correct: str = ""


class Cell(NamedTuple):
    """All runs on one data set with one optimizer at one learning rate: method -> seed -> run."""

    dataset: str
    optimizer: str
    learning_rate: float
    runs: Mapping[str, Mapping[int, RateRun]]

    @property
    def name(self) -> str:
        """`cub, sgd 0.03`."""
        return f"{self.dataset}, {self.optimizer} {self.learning_rate:g}"

    def pairs(self, method: str) -> list[tuple[RateRun, RateRun]]:
        """The runs of a method, each with the joint run of its seed."""
        joint = self.runs.get("joint", {})
        return [(run, joint[seed]) for seed, run in self.runs.get(method, {}).items() if seed in joint]

    def gains(self, method: str) -> list[float]:
        """Differences in accuracy to joint training, by seed."""
        return [run.accuracy - joint.accuracy for run, joint in self.pairs(method)]


def read_runs(paths: Iterable[Path]) -> list[RateRun]:
    """The runs in files that a sweep or `write_runs` wrote.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    return [run for path in paths for run in _read(path)]


def _read(path: Path) -> list[RateRun]:
    try:
        text = path.read_text(encoding="utf-8")
        return list(_of_store(text) if path.suffix == ".jsonl" else _of_results(json.loads(text)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of a sweep: {type(error).__name__}: {error}") from error


def _of_store(text: str) -> Iterator[RateRun]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):  # the last line may be half written
            for run in json.loads(line)["runs"]:
                yield RateRun(*(run[field] for field in RateRun._fields))


def _of_results(content: Mapping[str, Any]) -> Iterator[RateRun]:
    for group in content["runs"]:
        for i, (seed, accuracy) in enumerate(zip(group["seeds"], group["accuracy"], strict=True)):
            right = f"{int(group['correct'][i], 16):0{group['rows']}b}" if group["rows"] else ""
            yield RateRun(
                group["dataset"],
                group["optimizer"],
                group["learning_rate"],
                group["method"],
                seed,
                accuracy,
                right,
            )


def write_runs(path: Path, cells: Sequence[Cell], command: str) -> None:
    """Write the runs compactly: accuracies by seed, and right test rows as hexadecimal digits.

    Args:
        path: the file, replaced as a whole.
        cells: all runs.
        command: what makes them again.
    """
    groups = []
    for cell in cells:
        for method, by_seed in cell.runs.items():
            runs = [by_seed[seed] for seed in sorted(by_seed)]
            groups.append(
                {
                    "dataset": cell.dataset,
                    "optimizer": cell.optimizer,
                    "learning_rate": cell.learning_rate,
                    "method": method,
                    "seeds": [run.seed for run in runs],
                    "accuracy": [round(run.accuracy, 6) for run in runs],
                    "rows": len(runs[0].correct),
                    "correct": [f"{int(run.correct, 2):x}" for run in runs if run.correct],
                }
            )
    head = {"command": command, "environment": environment()}
    lines = ",\n".join(json.dumps(group) for group in groups)
    with replacing(path) as unfinished:
        unfinished.write_text(f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def cells_of(runs: Iterable[RateRun]) -> list[Cell]:
    """The runs by cell, in the order in which they come; rates ascend.

    Raises:
        ValueError: the same training was found twice, with different results.
    """
    found: dict[tuple[str, str, float], dict[str, dict[int, RateRun]]] = {}
    for run in runs:
        by_seed = found.setdefault(run[:3], {}).setdefault(run.method, {})
        known = by_seed.setdefault(run.seed, run)
        if abs(known.accuracy - run.accuracy) > 1e-5:
            raise ValueError(
                f"two runs differ: {run[:5]} has accuracy {known.accuracy} and {run.accuracy}; "
                "name files of one version of the library"
            )
    order = list(dict.fromkeys(place[:2] for place in found))
    places = sorted(found, key=lambda place: (order.index(place[:2]), place[2]))
    return [Cell(*place, found[place]) for place in places]


def at_all_rates(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Data set and optimizer -> the cells at the three rates; those with fewer or more rates are left out."""
    places: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        places.setdefault(cell[:2], []).append(cell)
    return {place: members for place, members in places.items() if len(members) == len(FACTORS)}


def at_own_rate(cells: Sequence[Cell]) -> list[Cell]:
    """The cells at the middle of the three rates; none of a data set and optimizer with fewer rates."""
    return [members[1] for members in at_all_rates(cells).values()]


def heading(methods: Sequence[str]) -> str:
    """The first two lines of the table."""
    columns = ["data set, optimizer, rate", "joint", *methods]
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def line(cell: Cell, methods: Sequence[str]) -> str:
    """A row of the table: joint training's mean, and the others' differences with the worst seed in brackets.

    >>> runs = [RateRun("cub", "sgd", 0.03, m, s, a) for m, s, a in
    ...         (("joint", 0, 0.9), ("joint", 1, 0.92), ("default", 0, 0.91), ("default", 1, 0.95))]
    >>> print(line(cells_of(runs)[0], ["default"]))
    | cub, sgd 0.03 | 91.0 | +2.0 [-10.7, +14.7] (+1.0) |
    """
    joint = [run.accuracy for run in cell.runs["joint"].values()]
    entries = [cell.name, f"{100 * statistics.fmean(joint):.1f}"]
    for method in methods:
        gains = cell.gains(method)
        text = f"{compare(cell.pairs(method))[0].text()} ({100 * min(gains):+.1f})" if gains else ""
        entries.append(text)
    return "| " + " | ".join(entries) + " |"


def intervals(cells: Sequence[Cell], method: str) -> list[Interval | None]:
    """The difference to joint training in each cell; None where the method did not run."""
    return [compare(cell.pairs(method))[0] if cell.gains(method) else None for cell in cells]
