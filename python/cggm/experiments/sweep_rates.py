"""Does balancing survive other learning rates? `python -m cggm.experiments.sweep_rates --data PATH --out FOLDER`.

Every method trains at joint training's own learning rate, at a quarter and at four times of it, on every data set, with
every optimizer. Printed are the accuracy of joint training, and the others' differences to it: mean with its 95%
interval over the seeds, and the worst seed in brackets. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cggm.policies import ModalityDropout, NormEqualization

from .datasets.experiment import Experiment
from .datasets.registry import DATASETS, FROM_FILES, find_experiment
from .output import check_folder
from .reports.intervals import Interval
from .training.methods import METHODS, Method
from .training.runner import plan
from .training.store import Store

FACTORS = (0.25, 1.0, 4.0)
METHODS_SWEPT: Mapping[str, Method] = {
    "joint": METHODS["joint"],
    "joint-clipped": METHODS["joint-clipped"],
    "without bound": Method(NormEqualization() + ModalityDropout(0.2)),
    "default": METHODS["default"],
}

Accuracies = dict[str, dict[int, float]]  # method -> seed -> test accuracy


def sweep(
    store: Store,
    builds: Mapping[str, Callable[[], Experiment]],
    *,
    optimizers: Sequence[str],
    seeds: Sequence[int],
    processes: int | None = None,
) -> None:
    """Train everything and print a line per data set, optimizer and factor.

    Args:
        store: remembers the runs.
        builds: name of the data set -> makes its experiment.
        optimizers: names in `loop.OPTIMIZERS`.
        seeds: of the data, the weights and the batches.
        processes: workers, by default one per core.
    """
    for name, build in builds.items():
        own = build().learning_rates
        for optimizer in optimizers:
            for factor in FACTORS:
                rate = factor * own[optimizer]
                jobs = plan(
                    build,
                    methods=METHODS_SWEPT,
                    optimizers=[optimizer],
                    seeds=seeds,
                    learning_rates={(optimizer, method): rate for method in METHODS_SWEPT},
                    only_accuracy=True,
                )
                found: Accuracies = {method: {} for method in METHODS_SWEPT}
                for outcome in store.execute(jobs, processes=processes):
                    for run in outcome.runs:
                        found[run.method][run.seed] = run.accuracy
                print(line(f"{name}, {optimizer} {rate:g}", found), flush=True)


def line(cell: str, found: Accuracies) -> str:
    """A row of the table.

    >>> print(line("cub, sgd 0.03", {"joint": {0: 0.9, 1: 0.92}, "default": {0: 0.91, 1: 0.95}}))
    | cub, sgd 0.03 | 91.0 | +2.0 [-10.7, +14.7] (+1.0) |
    """
    joint = found["joint"]
    cells = [cell, f"{100 * statistics.fmean(joint.values()):.1f}"]
    for method, accuracies in found.items():
        if method != "joint":
            paired = [accuracies[seed] - joint[seed] for seed in joint]
            cells.append(f"{Interval.of(paired).text()} ({100 * min(paired):+.1f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Parse the arguments and sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--dataset", nargs="+", default=None, help="names of data sets; by default all there are"
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with the files of further data sets")
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder for sweep.jsonl")
    parser.add_argument("--processes", type=int, default=None)
    options = parser.parse_args()
    names = options.dataset or [*DATASETS, *(FROM_FILES if options.data else ())]
    builds = {name: find_experiment(name, options.data) for name in names}
    check_folder(options.out)
    print("| data set, optimizer, rate | joint | " + " | ".join([*METHODS_SWEPT][1:]) + " |")
    print("|---" * (len(METHODS_SWEPT) + 1) + "|")
    sweep(
        Store(options.out / "sweep.jsonl"),
        builds,
        optimizers=options.optimizers,
        seeds=range(options.first_seed, options.first_seed + options.seeds),
        processes=options.processes,
    )


if __name__ == "__main__":
    main()
