"""Does balancing survive other learning rates? `python -m cggm.experiments.sweep_rates --data PATH --out FOLDER`.

Every method trains at joint training's own learning rate, at a quarter and at four times of it, on every data set, with
every optimizer. Printed are the accuracy of joint training, and the others' differences to it: mean with its 95%
interval over the seeds, and the worst seed in brackets; below, how many seeds collapsed, in how many cells a method is
worse than joint training, and which gains it lost. A sweep that was stopped goes on where it was.

The table and the figure of runs that are there, without training:
  python -m cggm.experiments.sweep_rates --summary benchmarks/results/rates.json --plot benchmarks/results/rates.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cggm.policies import ModalityDropout, NormEqualization

from .datasets.experiment import Experiment
from .datasets.registry import DATASETS, find_experiment
from .output import check_folder
from .reports import rate_checks, rates
from .reports.rates import FACTORS, RateRun
from .seeds import seed_range
from .training.methods import METHODS, Method
from .training.runner import plan
from .training.store import Store

METHODS_SWEPT: Mapping[str, Method] = {
    "joint": METHODS["joint"],
    "joint-clipped": METHODS["joint-clipped"],
    "joint-faster-encoders": METHODS["joint-faster-encoders"],
    "without bound": Method(NormEqualization() + ModalityDropout(0.2)),
    "default": METHODS["default"],
    "mmpareto": METHODS["mmpareto"],
    "unimodal": METHODS["unimodal"],
}
#: The data sets of the table in the documentation.
SETS = (
    *("avdigits", "avdigits-noisier", "avdigits-pca", "uci", "uci-six", "watch"),
    *("utd-mhad", "utd-mhad-subjects", "cub", "scene15", "wiki"),
)


def sweep(
    store: Store,
    builds: Mapping[str, Callable[[], Experiment]],
    *,
    methods: Sequence[str] = tuple(METHODS_SWEPT),
    optimizers: Sequence[str],
    seeds: Sequence[int],
    processes: int | None = None,
) -> list[RateRun]:
    """Train everything and print a line per data set, optimizer and factor.

    Args:
        store: remembers the runs.
        builds: name of the data set -> makes its experiment.
        methods: names in `METHODS_SWEPT`, joint among them.
        optimizers: names in `loop.OPTIMIZERS`.
        seeds: of the data, the weights and the batches.
        processes: workers, by default one per core.

    Returns:
        All runs.
    """
    chosen = {method: METHODS_SWEPT[method] for method in methods}
    others = [method for method in methods if method != "joint"]
    print(rates.heading(others))
    found: list[RateRun] = []
    for build in builds.values():
        own = build().learning_rates
        for optimizer in optimizers:
            for factor in FACTORS:
                jobs = plan(
                    build,
                    methods=chosen,
                    optimizers=[optimizer],
                    seeds=seeds,
                    learning_rates={(optimizer, method): factor * own[optimizer] for method in chosen},
                    only_accuracy=True,
                )
                runs = [
                    RateRun(*(getattr(run, field) for field in RateRun._fields))
                    for outcome in store.execute(jobs, processes=processes)
                    for run in outcome.runs
                ]
                print(rates.line(rates.cells_of(runs)[0], others), flush=True)
                found += runs
    return found


def main() -> None:
    """Parse the arguments, sweep or read what is there, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", nargs="+", help="names of data sets; by default all of the table")
    parser.add_argument("--data", type=Path, default=None, help="folder with the files of further data sets")
    parser.add_argument("--methods", nargs="+", default=list(METHODS_SWEPT), choices=list(METHODS_SWEPT))
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder for sweep.jsonl")
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument(
        "--summary", nargs="+", type=Path, metavar="FILE", help="train nothing, read these files"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw gain over learning rate into this file"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="write the runs compactly into this file"
    )
    options = parser.parse_args()
    if "joint" not in options.methods:
        parser.error("--methods must name joint: the others are compared with it")
    try:
        _run(options)
    except ValueError as error:
        parser.exit(2, f"sweep_rates: {error}\n")


def _run(options: argparse.Namespace) -> None:
    if options.summary:
        runs = rates.read_runs(options.summary)
    else:
        names = options.dataset or [n for n in SETS if n in DATASETS or options.data is not None]
        builds = {name: find_experiment(name, options.data) for name in names}
        check_folder(options.out)
        store = Store(options.out / "sweep.jsonl")
        with store.locked():
            runs = sweep(
                store,
                builds,
                methods=options.methods,
                optimizers=options.optimizers,
                seeds=seed_range(options.first_seed, options.seeds),
                processes=options.processes,
            )
    cells = rates.cells_of(runs)
    present = {method for cell in cells for method in cell.runs}
    methods = [method for method in METHODS_SWEPT if method in present and method != "joint"]
    if options.summary:
        print(rates.heading(methods))
        for cell in cells:
            print(rates.line(cell, methods))
    print()
    print(rate_checks.summary([rate_checks.check(cells, method) for method in methods], details="default"))
    if options.results:
        command = (
            "python -m cggm.experiments.sweep_rates --data PATH"
            f" --seeds {len({run.seed for run in runs})} --first-seed {min(run.seed for run in runs)}"
        )
        rates.write_runs(options.results, cells, command)
    if options.plot:
        from .reports.rates_plot import plot

        plot(cells, options.plot)


if __name__ == "__main__":
    main()
