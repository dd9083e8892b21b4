"""Learning rates chosen on the validation part, for every method alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..datasets.experiment import Experiment
from .methods import Method
from .results import Job, Outcome
from .runner import plan

FACTOR = 2.0  # between neighbours of the grid
FURTHEST = 6  # steps from the experiment's own rate, either way: beyond, nothing is learnt at all

Tried = dict[int, float]  # steps from the experiment's own learning rate -> mean validation accuracy


def best_step(tried: Tried) -> int:
    """The step with the highest accuracy; of equals, the one closest to the experiment's own rate.

    >>> best_step({-1: 0.90, 0: 0.92, 1: 0.92})
    0
    """
    return max(tried, key=lambda step: (tried[step], -abs(step)))


def next_step(tried: Tried) -> int | None:
    """What to try next so that the best has neighbours on both sides; None if it has, or nothing is left.

    >>> next_step({-1: 0.90, 0: 0.92, 1: 0.93}), next_step({-1: 0.90, 0: 0.92, 1: 0.91})
    (2, None)
    """
    best = best_step(tried)
    for step in (best - 1, best + 1):
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
    """The learning rate of each (data set, optimizer, method) with the best validation accuracy, averaged over seeds.

    Every method begins with the experiment's own rate, half and twice that; where the best is at an edge, the grid
    grows there until it is inside.

    Args:
        tasks: what makes an experiment, and the methods to be tuned on it.
        optimizers: names in `training.OPTIMIZERS`.
        seeds: to average over; report others.
        run: runs jobs, as `runner.execute` or `Store.execute` do.
        epochs: instead of the experiments' own numbers.
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
        found: dict[tuple[str, str, str, float], list[float]] = {}
        for outcome in run(jobs):
            for result in outcome.runs:
                place = (result.dataset, result.optimizer, result.method, result.learning_rate)
                found.setdefault(place, []).append(result.validation)
        for place, steps in wanted.items():
            for step in steps:
                tried[place][step] = statistics.fmean(found[(*place, own[place[:2]] * FACTOR**step)])
        wanted = {place: [step] for place, known in tried.items() if (step := next_step(known)) is not None}
    return {place: own[place[:2]] * FACTOR ** best_step(known) for place, known in tried.items()}


def of_dataset(rates: Mapping[tuple[str, str, str], float], name: str) -> dict[tuple[str, str], float]:
    """The learning rates of one data set by (optimizer, method), as `runner.plan` takes them.

    >>> of_dataset({("uci", "sgd", "joint"): 0.1, ("watch", "sgd", "joint"): 0.2}, "uci")
    {('sgd', 'joint'): 0.1}
    """
    return {(o, m): rate for (dataset, o, m), rate in rates.items() if dataset == name}
