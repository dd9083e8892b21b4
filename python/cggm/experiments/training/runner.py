"""Runs jobs in worker processes, one per core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from ..datasets.experiment import Experiment
from .loop import OPTIMIZERS, run_job
from .methods import Method
from .results import Job, Outcome

POLL_SECONDS = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM)


def plan(
    build: Callable[[], Experiment],
    *,
    methods: Mapping[str, Method],
    optimizers: Iterable[str],
    seeds: Iterable[int],
    epochs: int | None = None,
    learning_rates: Mapping[tuple[str, str], float] | None = None,
    **options: bool,
) -> list[Job]:
    """The jobs of a comparison, seed by seed, so that stopping early leaves complete seeds.

    Args:
        build: makes the experiment; a function of a module, or a `functools.partial` of one.
        methods: name -> method, as from `methods.choose_methods`.
        optimizers: names in `loop.OPTIMIZERS`.
        seeds: seeds of the data, the weights and the batches.
        epochs: number of epochs; by default the experiment's own.
        learning_rates: by (optimizer, method); by default the experiment's own.
        options: `history` and `only_accuracy`, as in `Job`.

    Raises:
        ValueError: an unknown optimizer, no seeds, or fewer than one epoch.

    >>> from cggm.experiments.datasets import avdigits
    >>> from cggm.experiments.training.methods import METHODS
    >>> len(plan(avdigits.build, methods=METHODS, optimizers=["sgd", "adam"], seeds=range(3)))
    6
    """
    optimizers, seeds = tuple(dict.fromkeys(optimizers)), tuple(dict.fromkeys(seeds))
    unknown = [name for name in optimizers if name not in OPTIMIZERS]
    if unknown or not optimizers:
        raise ValueError(f"optimizers must be some of {list(OPTIMIZERS)}, got {list(optimizers)}")
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be at least one number from 0 on, got {list(seeds)}")
    epochs = build().epochs if epochs is None else epochs
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    rates = learning_rates or {}
    return [
        Job(
            build=build,
            optimizer=optimizer,
            methods=methods,
            seed=seed,
            epochs=epochs,
            learning_rates={m: rates[optimizer, m] for m in methods if (optimizer, m) in rates},
            **options,
        )
        for seed in seeds
        for optimizer in optimizers
    ]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    jobs: Sequence[Job], *, processes: int | None = None, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Outcome]:
    """Run the jobs in worker processes of one thread each, and yield each outcome when its job finishes.

    However this generator ends (Ctrl-C, SIGTERM, an error, `close()`), the workers stop within an epoch. Ctrl-C and
    SIGTERM raise `KeyboardInterrupt` from here, after the outcomes of finished jobs.

    Args:
        jobs: what to run.
        processes: number of workers; by default one per core.
        advance: called regularly with the number of epochs finished since its last call.

    Raises:
        ValueError: fewer than one process.
        ChildProcessError: a worker was killed.
    """
    processes = cores() if processes is None else processes
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    epochs, stop = context.Value("L", 0), context.Event()
    pool = ProcessPoolExecutor(
        max_workers=max(1, min(processes, len(jobs))),
        mp_context=context,
        initializer=_start_worker,
        initargs=(epochs, stop),
    )
    seen = 0
    interrupts: list[int] = []
    # An exception raised at any line would break the locks of the pool and of the progress bar: count instead.
    with handle_signals(STOPPING, lambda number, frame: interrupts.append(number)):
        try:
            # Workers inherit this: Ctrl-C reaches them too, but it is for the main process to handle.
            with handle_signals((signal.SIGINT,), signal.SIG_IGN):
                running = {pool.submit(_work, job) for job in jobs}
            while running:
                ended, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                advance(epochs.value - seen)
                seen = epochs.value
                for future in ended:
                    if isinstance(future.exception(), BrokenProcessPool):
                        if interrupts:  # SIGTERM reached the workers, too
                            raise KeyboardInterrupt
                        raise ChildProcessError("a worker process was killed, perhaps because memory ran out")
                    yield future.result()
                if interrupts:
                    raise KeyboardInterrupt
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(Exception):
    """Ends a job in a worker after the main process has asked for it."""


_shared: dict[str, Any] = {}  # in a worker: the counter of epochs and the event that stops it


def _start_worker(epochs: Any, stop: Any) -> None:
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # the probes' linear algebra
    _shared.update(epochs=epochs, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process cannot stop its workers, which would run on or wait forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(job: Job) -> Outcome:
    return run_job(job, _count_epoch)


def _count_epoch() -> None:
    if _shared["stop"].is_set():
        raise _Stopped
    with _shared["epochs"].get_lock():
        _shared["epochs"].value += 1


@contextlib.contextmanager
def handle_signals(numbers: Iterable[int], handler: Any) -> Iterator[None]:
    """Replace signal handlers inside the `with`; does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
