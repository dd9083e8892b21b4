"""`cggm demo`: audio-visual digits, trained jointly and balanced on this machine in a minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cggm.integrations.live import LiveView

from .datasets import avdigits
from .options import Methods, Optimizers
from .output import check_folder
from .reports import demo_plot, report
from .seeds import seed_range
from .training.loop import Training, run_job
from .training.methods import choose_methods
from .training.results import Job, Outcome
from .training.runner import execute, plan


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train an audio-visual model on real data, jointly and balanced, and compare.

    Prints a table, and writes every run to demo.json and a picture of the training to demo.png.

    Args:
        seeds: How many seeds.
        first_seed: The first seed; the others follow.
        methods: Names in `METHODS`.
        optimizers: Names in `OPTIMIZERS`.
        epochs: Epochs of training.
        json: The file for the runs; by default demo.json in the output folder.
        out: The folder for demo.json and demo.png.
        live: Run one job after the other and show the statistics of the last method with a policy while it trains;
            without a terminal, run as usual.
    """

    seeds: int = 5
    first_seed: int = 0
    methods: Methods = ("joint", "unimodal", "cggm", "cggm-paper", "default")
    optimizers: Optimizers = ("sgd", "adam")
    epochs: int = 20
    json: Path | None = None
    out: Path = Path()
    live: bool = False


def run_demo(demo: Demo, console: Console | None = None) -> bool:
    """Run the demo with a progress bar, print the table and write the two files.

    Ctrl-C stops the runs; the finished ones are still reported.

    Args:
        demo: what to run.
        console: where to print.

    Returns:
        Whether every run finished.

    Raises:
        ValueError: an unknown method or optimizer, no seeds, a file that cannot be written, or a live view of methods
            that have no policy.
    """
    console = console or Console()
    json_path, plot_path = demo.json or demo.out / "demo.json", demo.out / "demo.png"
    methods = choose_methods(demo.methods)
    jobs = plan(
        avdigits.build,
        methods=methods,
        optimizers=demo.optimizers,
        seeds=seed_range(demo.first_seed, demo.seeds),
        epochs=demo.epochs,
        history=True,
    )
    shown = [name for name, method in methods.items() if method.policy is not None]
    if demo.live and not shown:
        raise ValueError(
            f"live shows a method with a policy, and methods has none: {list(methods)}; add 'default'"
        )
    live = demo.live and console.is_terminal
    for path in (json_path, plot_path):
        if path.is_dir():
            raise ValueError(f"out: {path} cannot be written: it is a folder")
        check_folder(path.parent)
    console.print(
        f"Spoken digits (audio) paired with handwritten digits (image): {len(methods)} methods side by "
        f"side, for {len(jobs)} combinations of optimizer and seed."
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    outcomes: list[Outcome] = []
    complete = True
    with contextlib.nullcontext() if live else Progress(*columns, console=console) as progress:
        if progress is not None:
            bar = progress.add_task("epochs", total=sum(job.epochs for job in jobs))
        try:
            for outcome in (
                _execute_live(jobs, shown[-1], console)
                if progress is None
                else execute(jobs, advance=lambda epochs: progress.advance(bar, epochs))
            ):
                outcomes.append(outcome)
                console.print(_line(outcome), highlight=False, soft_wrap=True)
                report.write_json(json_path, outcomes)
        except KeyboardInterrupt:
            complete = False
    if not complete:
        console.print(f"Stopped: {len(outcomes)} of {len(jobs)} combinations are done.")
    if outcomes:
        outcomes.sort(key=lambda outcome: (demo.optimizers.index(outcome.job.optimizer), outcome.job.seed))
        report.write_json(json_path, outcomes)
        demo_plot.plot([history for outcome in outcomes for history in outcome.histories], plot_path)
        console.print(report.table(report.summarize_outcomes(outcomes)))
        console.print(f"Written: {json_path} and {plot_path}", highlight=False, soft_wrap=True)
    return complete


def _execute_live(jobs: Sequence[Job], method: str, console: Console) -> Iterator[Outcome]:
    """Run the jobs in this process, on one thread as the workers do, with a live view of one method."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number, job in enumerate(jobs, 1):
            title = f"job {number} of {len(jobs)}, {job.optimizer}, seed {job.seed}: {method},"
            with threadpool_limits(1):
                outcome = _run_live(job, method, title, console)
            yield outcome
    finally:
        torch.set_num_threads(threads)


def _run_live(job: Job, method: str, title: str, console: Console) -> Outcome:
    views: list[LiveView] = []
    with contextlib.ExitStack() as stack:

        def stepped(trainings: Mapping[str, Training]) -> None:
            if not views:
                view = LiveView(trainings[method].optimizer, console=console, title=title)
                views.append(stack.enter_context(view))
            views[0].update()

        return run_job(job, stepped=stepped)


def _line(outcome: Outcome) -> str:
    accuracies = "  ".join(f"{run.method} {100 * run.accuracy:.1f}" for run in outcome.runs)
    return f"{outcome.job.optimizer:>4}, seed {outcome.job.seed}:  {accuracies}"
