"""The search for the default method: `python -m cggm.experiments.search_default --out FOLDER`.

Every candidate and every baseline gets its learning rate from the validation part (`tuning`), on every data set and
with every optimizer: a cell. The best candidates then run on more seeds, and the one whose validation accuracy is on
average closest to the best of each cell is chosen. Only the last stage reads test accuracies, on held-out seeds.
A search that was stopped resumes with the same command.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cggm.policies import CGGM, DGL, ModalityDropout, NormEqualization, UnimodalLosses

from .datasets.registry import DATASETS
from .output import check_folder
from .reports.intervals import Interval
from .training.methods import METHODS, Method, encoder_rates
from .training.results import Job, Outcome
from .training.runner import plan
from .training.store import Store
from .training.tuning import of_dataset, tune

OPTIMIZERS = ("sgd", "adam")
SETS = ("avdigits", "avdigits-noisier", "avdigits-pca", "uci", "watch")
BASELINES = ("joint", "mmpareto")
CANDIDATES: Mapping[str, Method] = {
    "dropout .35": Method(ModalityDropout(0.35)),
    "unimodal": Method(UnimodalLosses()),
    "norm-equalization": Method(NormEqualization()),
    "unimodal + dropout .2": Method(UnimodalLosses() + ModalityDropout(0.2)),
    "unimodal + dropout .35": Method(UnimodalLosses() + ModalityDropout(0.35)),
    "unimodal + dropout .5": Method(UnimodalLosses() + ModalityDropout(0.5)),
    "unimodal 2 + dropout .35": Method(UnimodalLosses(weight=2.0) + ModalityDropout(0.35)),
    "norm-equalization + dropout .2": Method(NormEqualization() + ModalityDropout(0.2)),
    "norm-equalization + dropout .35": Method(NormEqualization() + ModalityDropout(0.35)),
    "dgl + dropout .35": Method(DGL() + ModalityDropout(0.35)),
    "unimodal + cggm + dropout .35": Method(UnimodalLosses() + CGGM() + ModalityDropout(0.35)),
}

Cell = tuple[str, str]  # data set, optimizer
Scores = dict[Cell, dict[str, dict[int, float]]]  # cell -> method -> seed -> accuracy


def gather(outcomes: Iterable[Outcome], *, part: str) -> Scores:
    """Accuracies by cell, method and seed; `part` is `"validation"`, or `"accuracy"` for the test part."""
    scores: Scores = {}
    for outcome in outcomes:
        for run in outcome.runs:
            methods = scores.setdefault((run.dataset, run.optimizer), {})
            methods.setdefault(run.method, {})[run.seed] = getattr(run, part)
    return scores


def ranking(scores: Scores, methods: Sequence[str]) -> dict[str, float]:
    """Mean distance of each method to the best method of a cell, over all cells; the smallest first.

    >>> scores = {("a", "sgd"): {"x": {0: 0.9}, "y": {0: 0.7}}, ("b", "sgd"): {"x": {0: 0.5}, "y": {0: 0.6}}}
    >>> ranking(scores, ["x", "y"])
    {'x': 0.05, 'y': 0.1}
    """
    distances: dict[str, list[float]] = {name: [] for name in methods}
    for by_method in scores.values():
        means = {name: statistics.fmean(by_method[name].values()) for name in methods}
        for name, mean in means.items():
            distances[name].append(max(means.values()) - mean)
    found = {name: round(statistics.fmean(values), 6) for name, values in distances.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def search(store: Store, *, seeds: tuple[int, int, int], finalists: int, processes: int | None) -> None:
    """Run the three stages and print the result of each.

    Args:
        store: keeps the runs.
        seeds: number of seeds to tune with (from 0), to choose with (from 0) and to confirm with (from 1000).
        finalists: number of candidates that reach the second stage.
        processes: number of workers; by default one per core.
    """
    tuning, choosing, confirming = (
        range(seeds[0]),
        range(seeds[1]),
        range(1000, 1000 + seeds[2]),
    )

    def run(jobs: list[Job]) -> list[Outcome]:
        return list(store.execute(jobs, processes=processes))

    def accuracies(methods: Mapping[Cell, Sequence[str]], numbers: range, part: str) -> Scores:
        jobs = []
        for (name, optimizer), names in methods.items():
            jobs += plan(
                DATASETS[name],
                methods={m: contestants[name][m] for m in dict.fromkeys(names)},
                optimizers=[optimizer],
                seeds=numbers,
                learning_rates=of_dataset(rates, name),
                only_accuracy=True,
            )
        return gather(run(jobs), part=part)

    apart = {name: encoder_rates(len(DATASETS[name]().encoders)) for name in SETS}
    contestants = {name: {m: METHODS[m] for m in BASELINES} | dict(CANDIDATES) | apart[name] for name in SETS}
    cells = [(name, optimizer) for name in SETS for optimizer in OPTIMIZERS]
    tasks = [(DATASETS[name], contestants[name]) for name in SETS]
    rates = tune(tasks, optimizers=OPTIMIZERS, seeds=tuning, run=run)

    first = accuracies({cell: list(contestants[cell[0]]) for cell in cells}, tuning, "validation")
    print(
        f"Tuned on seeds 0-{seeds[0] - 1}; mean distance to the best of the {len(cells)} cells, validation:"
    )
    _show(order := ranking(first, list(CANDIDATES)))
    finalists_names = list(order)[:finalists]
    second = accuracies(dict.fromkeys(cells, finalists_names), choosing, "validation")
    print(f"Chosen on seeds 0-{seeds[1] - 1}, validation:")
    _show(order := ranking(second, finalists_names))
    winner = next(iter(order))
    print(f"The choice: {winner}. Test accuracy on seeds {confirming[0]}-{confirming[-1]}:", flush=True)
    last = {}
    for cell in cells:
        means = {m: statistics.fmean(first[cell][m].values()) for m in apart[cell[0]]}
        last[cell] = [*BASELINES, max(means, key=means.get), winner]
    others = {cell: [name for name in finalists_names if name != winner] for cell in cells}
    beside = accuracies(others, confirming, "accuracy")
    for cell, by_method in accuracies(last, confirming, "accuracy").items():
        _confirm(by_method | beside[cell], cell, winner, rates)


def _show(order: Mapping[str, float]) -> None:
    for name, distance in order.items():
        print(f"  {100 * distance:5.2f}  {name}")


def _confirm(
    by_method: Mapping[str, Mapping[int, float]],
    cell: Cell,
    winner: str,
    rates: Mapping[tuple[str, str, str], float],
) -> None:
    print(", ".join(cell))
    for method, accuracies in by_method.items():
        mean = 100 * statistics.fmean(accuracies.values())
        line = f"  {method:34} lr {rates[(*cell, method)]:<7.2g} {mean:5.1f}"
        for other in BASELINES:
            if method != other:
                paired = [accuracies[seed] - by_method[other][seed] for seed in accuracies]
                line += f"   to {other} {Interval.of(paired).text()}"
        print(line + ("   <-" if method == winner else ""))


def main() -> None:
    """Parse the arguments and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("search"), help="folder for search.jsonl")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs=3,
        default=(2, 10, 20),
        help="number of seeds to tune, choose and confirm with",
    )
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--processes", type=int, default=None)
    options = parser.parse_args()
    check_folder(options.out)
    store = Store(options.out / "search.jsonl")
    search(store, seeds=tuple(options.seeds), finalists=options.finalists, processes=options.processes)


if __name__ == "__main__":
    main()
