"""`cggm demo`: audio-visual digits, trained jointly and balanced on this machine in a minute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .datasets import avdigits
from .options import Methods, Optimizers
from .output import check_folder
from .reports import demo_plot, report
from .seeds import seed_range
from .training.methods import choose_methods
from .training.results import Outcome
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
    """

    seeds: int = 5
    first_seed: int = 0
    methods: Methods = ("joint", "unimodal", "cggm", "cggm-paper", "default")
    optimizers: Optimizers = ("sgd", "adam")
    epochs: int = 20
    json: Path | None = None
    out: Path = Path()


def run_demo(demo: Demo, console: Console | None = None) -> bool:
    """Run the demo with a progress bar, print the table and write the two files.

    Ctrl-C stops the runs; the finished ones are still reported.

    Args:
        demo: what to run.
        console: where to print.

    Returns:
        Whether every run finished.

    Raises:
        ValueError: an unknown method or optimizer, no seeds, or a file that cannot be written.
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
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("epochs", total=sum(job.epochs for job in jobs))
        try:
            for outcome in execute(jobs, advance=lambda epochs: progress.advance(bar, epochs)):
                outcomes.append(outcome)
                progress.console.print(_line(outcome), highlight=False, soft_wrap=True)
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


def _line(outcome: Outcome) -> str:
    accuracies = "  ".join(f"{run.method} {100 * run.accuracy:.1f}" for run in outcome.runs)
    return f"{outcome.job.optimizer:>4}, seed {outcome.job.seed}:  {accuracies}"
