"""`cggm data`: what to know about a data set before trusting results on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from .datasets.checks import check_experiment
from .datasets.registry import find_experiment
from .datasets.sanity import SIMILAR, describe_overlaps, describe_parts, warnings
from .seeds import check_seed


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Check a data set: rows and classes of each part, order of the labels, copies and near-copies across parts.

    Args:
        name: A data set's name, or your own experiment: module:object or path/file.py:object.
        data: The folder with the files of a data set that does not come with the library.
        seed: Seed of the split.
    """

    name: Positional[str]
    data: Path | None = None
    seed: int = 0


def run_data_check(check: DataCheck, console: Console | None = None) -> bool:
    """Print what is in the parts and what looks wrong.

    Args:
        check: the data set.
        console: where to print.

    Returns:
        True: it always finishes.

    Raises:
        ValueError: an unknown data set, missing files, or an experiment that cannot train.
    """
    console = console or Console()
    check_seed("seed", check.seed)
    experiment = find_experiment(check.name, check.data)()
    data = check_experiment(experiment, seed=check.seed, optimizers=())
    modalities = list(experiment.encoders)
    shapes = [f"{m} {list(x.shape[1:])}" for m, x in zip(modalities, data.train.inputs, strict=True)]
    console.print(f"{experiment.name}, seed {check.seed}: {', '.join(shapes)}", highlight=False, markup=False)
    parts = Table("part", "rows", "classes", "largest class", "next row has\nthe same class", box=SIMPLE_HEAD)
    for part in describe_parts(data):
        parts.add_row(
            part.name, str(part.rows), str(part.classes), f"{part.largest:.0%}", f"{part.same_as_next:.0%}"
        )
    console.print(parts)
    bounds = [f"cosine\nabove {bound}" for bound in SIMILAR]
    overlaps = Table("test rows like\na training row", "equal", *bounds, box=SIMPLE_HEAD)
    for overlap in describe_overlaps(data, modalities):
        overlaps.add_row(
            overlap.modality, str(overlap.copies), *(f"{share:.1%}" for share in overlap.similar)
        )
    console.print(overlaps)
    for line in warnings(data, modalities) or ["Nothing looks wrong."]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return True
