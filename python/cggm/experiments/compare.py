"""Methods x optimizers x seeds on one data set or several, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .datasets.experiment import Experiment
from .datasets.registry import find_experiment
from .options import Datasets, Methods, Optimizers
from .reports import comparison as drawn
from .reports import report
from .training.methods import choose_methods
from .training.results import Job, Outcome
from .training.runner import plan
from .training.store import Store
from .training.tuning import of_dataset, tune

FIRST_TUNING_SEED = 500_000  # far from every seed that is reported
TUNING_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compare balancing methods on the data sets that come along, or on your own.

    Prints a table per data set and writes compare.json (every run) and compare.png. Each finished job is kept in
    compare.jsonl: started again with the same folder, a comparison that was stopped or killed goes on where it was.

    Args:
        dataset: Names in `DATASETS`.
        experiment: Your own instead: module:function, a function that returns a
            cggm.experiments.experiment.Experiment.
        methods: Names in `METHODS`.
        optimizers: Names in `OPTIMIZERS`.
        seeds: How many seeds.
        first_seed: The first of them; the others follow.
        tune: Choose the learning rate of every method on the validation part, on three further seeds.
        epochs: Epochs of training, by default the experiment's own number.
        processes: How many processes, by default one per core.
        out: The folder for the files.
    """

    dataset: Datasets = ("avdigits",)
    experiment: str | None = None
    methods: Methods = ("joint", "unimodal", "cggm", "mmpareto", "norm-equalization", "default")
    optimizers: Optimizers = ("sgd", "adam")
    seeds: int = 10
    first_seed: int = 0
    tune: bool = False
    epochs: int | None = None
    processes: int | None = None
    out: Path = Path("comparison")


def run_compare(comparison: Comparison, console: Console | None = None) -> bool:
    """Run the comparison with a progress bar, print the tables, write the files.

    Ctrl-C ends the runs; what is done by then is reported, and the same call goes on from there.

    Args:
        comparison: what to compare.
        console: where to print.

    Returns:
        Whether everything ran.

    Raises:
        ValueError: an unknown data set, method or optimizer, no seeds, a file of another kind in the way.
    """
    console = console or Console()
    if not console.is_terminal:  # a file has no edge, and columns cut short would lose figures
        console.width = max(console.width, 120)
    names = (comparison.experiment,) if comparison.experiment else comparison.dataset
    builds = [find_experiment(name) for name in dict.fromkeys(names)]
    store = Store(comparison.out / "compare.jsonl")
    outcomes: list[Outcome] = []
    complete = True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    _check(comparison, builds)
    with Progress(*columns, console=console) as progress:
        try:
            for build in builds:
                _compare_one(comparison, build, store, progress, outcomes)
        except KeyboardInterrupt:
            complete = False
    if not complete:
        console.print(f"Stopped: the same command goes on from {store.path}.", soft_wrap=True)
    if outcomes:
        _report(comparison, outcomes, console)
    return complete


def _check(comparison: Comparison, builds: list[Callable[[], Experiment]]) -> None:
    """Everything that `plan` refuses, before anything has run."""
    for build in builds:
        plan(
            build, methods=choose_methods(comparison.methods), **_common(comparison), seeds=_seeds(comparison)
        )


def _common(comparison: Comparison) -> dict:
    return {"optimizers": comparison.optimizers, "epochs": comparison.epochs}


def _seeds(comparison: Comparison) -> range:
    return range(comparison.first_seed, comparison.first_seed + comparison.seeds)


def _compare_one(
    comparison: Comparison,
    build: Callable[[], Experiment],
    store: Store,
    progress: Progress,
    outcomes: list[Outcome],
) -> None:
    """Tune and run on one data set; outcomes are added as they come."""
    name, methods = build().name, choose_methods(comparison.methods)

    def run(jobs: list[Job], what: str) -> list[Outcome]:
        bar = progress.add_task(f"{name} {what}", total=sum(job.epochs for job in jobs))
        found = []
        advance = lambda epochs: progress.advance(bar, epochs)  # noqa: E731
        for outcome in store.execute(jobs, processes=comparison.processes, advance=advance):
            found.append(outcome)
            if not outcome.job.only_accuracy:
                outcomes.append(outcome)
        return found

    rates = {}
    if comparison.tune:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + TUNING_SEEDS)
        rates = tune(
            [(build, methods)], seeds=seeds, run=lambda jobs: run(jobs, "tuning"), **_common(comparison)
        )
    jobs = plan(
        build,
        methods=methods,
        seeds=_seeds(comparison),
        learning_rates=of_dataset(rates, name),
        **_common(comparison),
    )
    run(jobs, "comparing")


def _report(comparison: Comparison, outcomes: list[Outcome], console: Console) -> None:
    outcomes.sort(key=lambda o: (comparison.optimizers.index(o.job.optimizer), o.job.seed))
    order = list(dict.fromkeys(run.dataset for outcome in outcomes for run in outcome.runs))
    outcomes.sort(key=lambda o: order.index(o.runs[0].dataset))
    rows = report.summarize_outcomes(outcomes)
    for table in drawn.tables(rows):
        console.print(table)
    report.write_json(comparison.out / "compare.json", outcomes)
    written = [comparison.out / "compare.json"]
    if any(row.interval for row in rows):
        written.append(comparison.out / "compare.png")
        drawn.plot(rows, written[-1])
    console.print(f"Written: {' and '.join(map(str, written))}", highlight=False, soft_wrap=True)
