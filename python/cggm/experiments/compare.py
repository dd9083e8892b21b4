"""`cggm compare`: methods × optimizers × seeds on one or several data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .datasets.checks import check_experiment
from .datasets.experiment import Experiment
from .datasets.own import load_function
from .datasets.registry import FROM_FILES, find_experiment
from .options import Datasets, Methods, Optimizers
from .output import check_folder, wide_console
from .reports import comparison as drawn
from .reports import report
from .reports.functions import tables as function_tables
from .seeds import seed_range
from .training.functions import FunctionRun, Train, run_function, wrapping
from .training.methods import choose_methods
from .training.results import Job, Outcome
from .training.runner import plan
from .training.store import Store
from .training.tuning import of_dataset, tune

FIRST_TUNING_SEED = 500_000  # no results are reported with these
TUNING_SEEDS = 3

Rates = dict[tuple[str, str], float]  # by optimizer and method


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compare balancing methods on the library's data sets or on your own.

    Prints a table per data set and writes compare.json (every run) and compare.png. Finished jobs are kept in
    compare.jsonl: the same command resumes a comparison that was stopped or killed.

    Args:
        dataset: Names in `DATASETS` and `FROM_FILES`.
        data: The folder with the files of data sets that do not come with the library.
        experiment: Your own experiments, module:object or path/file.py:object, each a
            cggm.experiments.experiment.Experiment, a function that returns one, or a function
            train(wrap, seed) that trains and returns a dict of metrics.
        methods: Names in `METHODS`.
        optimizers: Names in `OPTIMIZERS`.
        seeds: How many seeds.
        first_seed: The first seed; the others follow.
        tune: Choose the learning rate of every method on the validation part, with three further seeds.
        joint_rate: With --tune, run every method also at the rate that was chosen for joint training, if
            joint is among the methods.
        epochs: Epochs of training; by default the experiment's own number.
        processes: How many processes; by default one per core.
        out: The folder for the files.
    """

    dataset: Datasets = None
    data: Path | None = None
    experiment: tuple[str, ...] | None = None
    methods: Methods = ("joint", "unimodal", "cggm", "mmpareto", "norm-equalization", "default")
    optimizers: Optimizers = ("sgd", "adam")
    seeds: int = 10
    first_seed: int = 0
    tune: bool = False
    joint_rate: bool = True
    epochs: int | None = None
    processes: int | None = None
    out: Path = Path("comparison")


def run_compare(comparison: Comparison, console: Console | None = None) -> bool:
    """Run the comparison with a progress bar, print the tables and write the files.

    Ctrl-C stops the runs; the finished ones are reported, and the same call resumes from there.

    Args:
        comparison: what to compare.
        console: where to print.

    Returns:
        Whether every run finished.

    Raises:
        ValueError: an unknown data set, method or optimizer, no seeds, an experiment that cannot train, an existing
            compare.jsonl with other content, a folder that cannot be written to or in which another comparison runs,
            or a full disk.
    """
    console = wide_console(console)
    functions = {n: f for n in comparison.experiment or () if (f := load_function(n)) is not None}
    builds = _experiments(comparison, functions)
    _check(comparison, builds, functions)
    check_folder(comparison.out)
    store = Store(comparison.out / "compare.jsonl")
    outcomes: list[Outcome] = []
    measured: list[FunctionRun] = []
    complete = True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with store.locked(), Progress(*columns, console=console) as progress:
        try:
            for build in builds:
                _compare_one(comparison, build, store, progress, outcomes)
            for name, function in functions.items():
                _compare_function(comparison, name, function, progress, measured)
        except KeyboardInterrupt:
            complete = False
    if not complete:
        console.print(f"Stopped: the same command goes on from {store.path}.", soft_wrap=True)
    for table in function_tables(measured):
        console.print(table)
    if outcomes:
        _report(comparison, outcomes, console)
    return complete


def _compare_function(
    comparison: Comparison, name: str, train: Train, progress: Progress, measured: list[FunctionRun]
) -> None:
    """Call the user's function for every method and seed."""
    methods, seeds = choose_methods(comparison.methods), _seeds(comparison)
    bar = progress.add_task(name, total=len(methods) * len(seeds))
    run_function(
        name,
        train,
        methods=methods,
        seeds=seeds,
        path=comparison.out / "functions.jsonl",
        found=measured,
        advance=lambda: progress.advance(bar, 1),
    )


def _experiments(comparison: Comparison, functions: Mapping[str, Train]) -> list[Callable[[], Experiment]]:
    """What makes each experiment, in the order asked for."""
    for option in ("dataset", "experiment"):
        if getattr(comparison, option) == ():
            raise ValueError(f"{option} must name at least one: --{option} NAME")
    own = [name for name in comparison.experiment or () if name not in functions]
    names = [*(comparison.dataset or ()), *own] or ([] if functions else ["avdigits"])
    if comparison.data is not None and not set(names) & set(FROM_FILES):
        raise ValueError(f"data is read only by the data sets {list(FROM_FILES)}, got {names}")
    builds = [
        find_experiment(name, comparison.data if name in FROM_FILES else None)
        for name in dict.fromkeys(names)
    ]
    titles = [build().name for build in builds]
    if len(set(titles)) < len(titles):
        raise ValueError(f"experiments must have different names, got {titles}")
    return builds


def _check(
    comparison: Comparison, builds: list[Callable[[], Experiment]], functions: Mapping[str, Train]
) -> None:
    """Refuse whatever cannot run, before anything has run."""
    methods, seeds = choose_methods(comparison.methods), _seeds(comparison)
    if comparison.processes is not None and comparison.processes < 1:
        raise ValueError(f"processes must be at least 1, got {comparison.processes}")
    if functions:
        if comparison.tune or comparison.epochs is not None:
            raise ValueError(
                f"tune and epochs: the functions {list(functions)} choose rates and epochs themselves"
            )
        for method in methods.values():
            wrapping(method)
    for build in builds:
        plan(build, methods=methods, seeds=seeds, **_common(comparison))
        check_experiment(build(), seed=seeds[0], optimizers=comparison.optimizers)


def _common(comparison: Comparison) -> dict:
    return {"optimizers": comparison.optimizers, "epochs": comparison.epochs}


def _seeds(comparison: Comparison) -> range:
    return seed_range(comparison.first_seed, comparison.seeds)


def _compare_one(
    comparison: Comparison,
    build: Callable[[], Experiment],
    store: Store,
    progress: Progress,
    outcomes: list[Outcome],
) -> None:
    """Tune and run on one data set; outcomes are added as they come."""
    experiment = build()
    name, methods = experiment.name, choose_methods(comparison.methods, len(experiment.encoders))

    def run(jobs: list[Job], what: str) -> Iterator[Outcome]:
        bar = progress.add_task(f"{name} {what}", total=sum(job.epochs for job in jobs))
        advance = lambda epochs: progress.advance(bar, epochs)  # noqa: E731
        return store.execute(jobs, processes=comparison.processes, advance=advance)

    def compare(rates: Rates, what: str) -> Iterator[Outcome]:
        seeds = _seeds(comparison)
        jobs = plan(build, methods=methods, seeds=seeds, learning_rates=rates, **_common(comparison))
        return run(jobs, what)

    rates: Rates = {}
    if comparison.tune:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + TUNING_SEEDS)
        tuned = tune(
            [(build, methods)], seeds=seeds, run=lambda jobs: run(jobs, "tuning"), **_common(comparison)
        )
        rates = of_dataset(tuned, name)
    outcomes.extend(compare(rates, "comparing"))  # keeps what comes before an interrupt
    if comparison.tune and comparison.joint_rate and "joint" in comparison.methods:
        shared = {(optimizer, method): rates[optimizer, "joint"] for optimizer, method in rates}
        outcomes.extend(_renamed(o, f"{name}, joint's rate") for o in compare(shared, "at joint's rate"))


def _renamed(outcome: Outcome, name: str) -> Outcome:
    """The outcome as one of another data set."""
    runs = [dataclasses.replace(run, dataset=name) for run in outcome.runs]
    return dataclasses.replace(outcome, runs=runs, alone=dataclasses.replace(outcome.alone, dataset=name))


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
