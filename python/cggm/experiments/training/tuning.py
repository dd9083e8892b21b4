"""Learning rates chosen on the validation part, in the same way for every method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..datasets.experiment import Experiment
from .methods import Method
from .results import Job, Outcome, Run
from .runner import plan

FACTOR = 2.0  # between neighbors of the grid
FURTHEST = 6  # steps from the experiment's own rate, either way: nothing trains beyond


class Validation(NamedTuple):
    """Mean validation accuracy and loss over the seeds, and the accuracy's standard error."""

    accuracy: float
    loss: float
    error: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Validation:
        """Of the runs of one method at one rate.

        The standard error is that over the seeds, or that of the choice of the rows, whichever is larger: seeds that
        share a small validation part agree with each other and still say little.
        """
        accuracies = [run.validation for run in runs]
        mean = statistics.fmean(accuracies)
        seeds = statistics.variance(accuracies) / len(runs) if len(runs) > 1 else 0.0
        rows = max(0.0, mean * (1 - mean)) / runs[0].validation_rows
        loss = statistics.fmean(run.validation_loss for run in runs)
        return cls(mean, loss if math.isfinite(loss) else math.inf, math.sqrt(max(seeds, rows)))


Tried = dict[int, Validation]  # by steps from the experiment's own learning rate


def best_step(tried: Tried) -> int:
    """The step with the lowest loss among those whose accuracy is within one standard error of the best.

    Of equal losses, the step closest to the experiment's own rate is taken.

    >>> best_step({-1: Validation(0.90, 0.3, 0.01), 0: Validation(0.92, 0.4, 0.01), 1: Validation(0.925, 0.9, 0.01)})
    0
    """
    highest = max(tried.values(), key=lambda found: found.accuracy)
    near = [step for step, found in tried.items() if found.accuracy >= highest.accuracy - highest.error]
    return min(near, key=lambda step: (tried[step].loss, abs(step)))


def next_step(tried: Tried) -> int | None:
    """What to try next so that the best accuracy and the choice have neighbors on both sides; None if they have.

    >>> def tried(*accuracies):
    ...     return {step: Validation(accuracy, 1.0, 0.0) for step, accuracy in enumerate(accuracies, -1)}
    >>> next_step(tried(0.90, 0.92, 0.93)), next_step(tried(0.90, 0.92, 0.91))
    (2, None)
    """
    highest = max(tried, key=lambda step: (tried[step].accuracy, -abs(step)))
    for center in (highest, best_step(tried)):
        for step in (center - 1, center + 1):
            if step not in tried and abs(step) <= FURTHEST:
                return step
    return None


def tune(
    tasks: Sequence[tuple[Callable[[], Experiment], Mapping[str, Method]]],
    *,
    optimizers: Sequence[str],
    seeds: Sequence[int],
    run: Callable[[list[Job]], Iterable[Outcome]],
    epochs: int | None = None,
) -> dict[tuple[str, str, str], float]:
    """The learning rate of each (data set, optimizer, method), chosen on the validation part by `best_step`.

    Every method starts with the experiment's own rate, half and twice that. Where the best one is at an edge, the grid
    grows there until it is inside.

    Args:
        tasks: what makes an experiment, and the methods to tune on it.
        optimizers: names in `loop.OPTIMIZERS`.
        seeds: seeds to average over; report results with other seeds.
        run: runs jobs, as `runner.execute` or `Store.execute` do.
        epochs: number of epochs; by default the experiment's own.
    """
    experiments = [build() for build, _ in tasks]
    own = {(e.name, o): e.learning_rates[o] for e in experiments for o in optimizers}
    tried: dict[tuple[str, str, str], Tried] = {
        (e.name, o, m): {}
        for e, (_, methods) in zip(experiments, tasks, strict=True)
        for o in optimizers
        for m in methods
    }
    wanted = {place: [-1, 0, 1] for place in tried}
    while wanted:
        jobs = []
        for experiment, (build, methods) in zip(experiments, tasks, strict=True):
            for optimizer in optimizers:
                steps = {m: wanted.get((experiment.name, optimizer, m), []) for m in methods}
                base = own[experiment.name, optimizer]
                for turn in range(max(map(len, steps.values()))):
                    rates = {
                        m: base * FACTOR ** tries[turn] for m, tries in steps.items() if turn < len(tries)
                    }
                    jobs += plan(
                        build,
                        methods={m: methods[m] for m in rates},
                        optimizers=[optimizer],
                        seeds=seeds,
                        epochs=epochs,
                        learning_rates={(optimizer, m): rate for m, rate in rates.items()},
                        only_accuracy=True,
                    )
        found: dict[tuple[str, str, str, float], list[Run]] = {}
        for outcome in run(jobs):
            for result in outcome.runs:
                place = (result.dataset, result.optimizer, result.method, result.learning_rate)
                found.setdefault(place, []).append(result)
        for place, steps in wanted.items():
            for step in steps:
                tried[place][step] = Validation.of(found[(*place, own[place[:2]] * FACTOR**step)])
        wanted = {place: [step] for place, known in tried.items() if (step := next_step(known)) is not None}
    return {place: own[place[:2]] * FACTOR ** best_step(known) for place, known in tried.items()}


def of_dataset(rates: Mapping[tuple[str, str, str], float], name: str) -> dict[tuple[str, str], float]:
    """The learning rates of one data set by (optimizer, method), as `runner.plan` takes them.

    >>> of_dataset({("uci", "sgd", "joint"): 0.1, ("watch", "sgd", "joint"): 0.2}, "uci")
    {('sgd', 'joint'): 0.1}
    """
    return {(o, m): rate for (dataset, o, m), rate in rates.items() if dataset == name}
