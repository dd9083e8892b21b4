"""The demo: audio-visual digits, trained jointly and balanced, on this machine, in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .datasets import avdigits
from .reports import demo_plot, report
from .training.methods import choose_methods
from .training.results import Outcome
from .training.runner import execute, plan


def run_demo(
    *,
    methods: Sequence[str],
    optimizers: Sequence[str],
    seeds: Sequence[int],
    json_path: Path,
    plot_path: Path,
    epochs: int | None = None,
    console: Console | None = None,
) -> bool:
    """Run the comparison with a progress bar, then print the table and write the two files.

    Ctrl-C ends the runs; what is done by then is reported and written all the same.

    Args:
        methods: names in `methods.METHODS`.
        optimizers: names in `training.OPTIMIZERS`.
        seeds: of the data, the weights and the batches.
        json_path: every run, rewritten whenever some have ended.
        plot_path: the picture.
        epochs: instead of the experiment's 20.
        console: where to print.

    Returns:
        Whether everything ran.

    Raises:
        ValueError: an unknown method or optimizer, no seeds.
    """
    console = console or Console()
    build = avdigits.build
    chosen = choose_methods(methods)
    jobs = plan(build, methods=chosen, optimizers=optimizers, seeds=seeds, epochs=epochs, history=True)
    console.print(
        f"Spoken digits (audio) paired with handwritten digits (image): {len(chosen)} methods side by "
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
        outcomes.sort(key=lambda outcome: (optimizers.index(outcome.job.optimizer), outcome.job.seed))
        report.write_json(json_path, outcomes)
        demo_plot.plot([history for outcome in outcomes for history in outcome.histories], plot_path)
        console.print(report.table(report.summarize_outcomes(outcomes)))
        console.print(f"Written: {json_path} and {plot_path}", highlight=False, soft_wrap=True)
    return complete


def _line(outcome: Outcome) -> str:
    accuracies = "  ".join(f"{run.method} {100 * run.accuracy:.1f}" for run in outcome.runs)
    return f"{outcome.job.optimizer:>4}, seed {outcome.job.seed}:  {accuracies}"
