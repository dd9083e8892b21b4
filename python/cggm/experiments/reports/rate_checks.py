"""What a sweep over learning rates must show: no collapse, nowhere worse than joint training, gains kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..datasets import avdigits, multiview, uci, utd_mhad, watch, wiki
from .intervals import LEVEL, holm
from .rates import Cell, at_own_rate
from .report import compare

COLLAPSE = 0.10  # a seed that is this far below its joint run has collapsed
LOWEST_MEAN = -0.015
LOWEST_AT_OWN_RATE = {
    "wiki": -0.003
}  # one modality carries nearly all the signal: balancing must cost nothing
#: Gains that the default keeps at the experiment's own rate.
KEPT = {
    ("avdigits", "sgd"): 0.04,
    ("avdigits", "adam"): 0.015,
    ("avdigits-noisier", "sgd"): 0.03,
    ("avdigits-noisier", "adam"): 0.015,
    ("avdigits-pca", "sgd"): 0.03,
    ("avdigits-pca", "adam"): 0.04,
    ("uci", "sgd"): 0.005,
    ("uci", "adam"): 0.005,
    ("utd-mhad", "sgd"): 0.04,
    ("utd-mhad", "adam"): 0.015,
}
CLASSES = {
    "avdigits": avdigits.DIGITS,
    "uci": uci.DIGITS,
    "watch": watch.EXERCISES,
    "utd-mhad": utd_mhad.ACTIONS,
    "scene15": multiview.SOURCES["scene15"].classes,
    "cub": multiview.SOURCES["cub"].classes,
    "wiki": wiki.SUBJECTS,
}


class Check(NamedTuple):
    """What a method did in all cells; each list holds one text per violation."""

    method: str
    cells: int
    collapses: list[str]
    worse: list[str]
    low_means: list[str]
    lost_gains: list[str]


def check(cells: Sequence[Cell], method: str) -> Check:
    """Whether a method collapses, is worse than joint training anywhere, or loses the gains it should keep.

    - Collapse: a seed more than 10 points below its joint run, where that run works: it is above halfway from chance
      to the data set's best cell of joint training.
    - Worse: significantly below joint training after Holm's correction over all cells of this method.
    - Low mean: below -1.5 points; on wiki at its own rate below -0.3.
    - Lost gain: below the bound in `KEPT` at the experiment's own rate.
    """
    compared = [(cell, *compare(cell.pairs(method))) for cell in cells if cell.gains(method)]
    own = at_own_rate(cells)
    adjusted = holm([1.0 if p is None else p for _, _, p in compared])
    worse = [
        f"{cell.name}: {interval.text()}"
        for (cell, interval, _), p in zip(compared, adjusted, strict=True)
        if p < LEVEL and interval.mean < 0
    ]
    low, lost = [], []
    for cell, interval, _ in compared:
        least = LOWEST_AT_OWN_RATE.get(cell.dataset, LOWEST_MEAN) if cell in own else LOWEST_MEAN
        if interval.mean < least:
            low.append(f"{cell.name}: {interval.text()}")
        kept = KEPT.get(cell[:2]) if cell in own else None
        if kept is not None and interval.mean < kept:
            lost.append(f"{cell.name}: {interval.text()}, not {100 * kept:+.1f}")
    return Check(method, len(compared), _collapses(cells, method), worse, low, lost)


def _collapses(cells: Sequence[Cell], method: str) -> list[str]:
    best: dict[str, float] = {}
    for cell in cells:
        mean = statistics.fmean(run.accuracy for run in cell.runs["joint"].values())
        best[cell.dataset] = max(mean, best.get(cell.dataset, 0.0))
    found = []
    for cell in cells:
        classes = next(n for name, n in CLASSES.items() if cell.dataset.startswith(name))
        works = (1 / classes + best[cell.dataset]) / 2
        found += [
            f"{cell.name}, seed {run.seed}: {100 * run.accuracy:.1f}, joint {100 * joint.accuracy:.1f}"
            for run, joint in cell.pairs(method)
            if joint.accuracy > works and run.accuracy < joint.accuracy - COLLAPSE
        ]
    return found


def summary(checks: Sequence[Check], details: str) -> str:
    """The checks as a table, and every violation of one method.

    Args:
        checks: one per method.
        details: the method whose violations are listed.
    """
    lines = ["| method | cells | collapsed seeds | worse (Holm) | low means | lost gains |", "|---" * 6 + "|"]
    for found in checks:
        counts = " | ".join(str(len(texts)) for texts in found[2:])
        lines.append(f"| {found.method} | {found.cells} | {counts} |")
    for found in checks:
        if found.method == details:
            for what, texts in zip(("collapsed", "worse", "low mean", "lost gain"), found[2:], strict=True):
                lines += [f"{details}, {what}: {text}" for text in texts]
    return "\n".join(lines)
