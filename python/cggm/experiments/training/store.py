"""A file with one line of JSON per finished job, so that a killed comparison can resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cggm

from ..output import append_line, file_errors, read_lines
from .results import Alone, Job, Outcome, Run
from .runner import execute


def describe(job: Job) -> dict[str, Any]:
    """Everything that decides what a job finds, as JSON values that are equal for equal jobs.

    >>> from cggm.experiments.datasets import avdigits
    >>> from cggm.experiments.training.methods import choose_methods
    >>> job = Job(build=avdigits.build, optimizer="adam", methods=choose_methods(["joint"]), seed=1, epochs=2)
    >>> describe(job)["methods"]["joint"][-1]
    0.002
    """
    experiment = job.build()
    own = experiment.learning_rates[job.optimizer]
    return {
        "version": cggm.__version__,
        "dataset": experiment.name,
        "data": _folder(job.build),
        "optimizer": job.optimizer,
        "seed": job.seed,
        "epochs": job.epochs,
        "only_accuracy": job.only_accuracy,
        "methods": {
            name: [repr(method), job.learning_rates.get(name, own)] for name, method in job.methods.items()
        },
    }


def _folder(build: Any) -> str | None:
    """The folder that a data set's files are read from, None for one without."""
    given = build.args if isinstance(build, functools.partial) else ()
    return next((str(value.resolve()) for value in given if isinstance(value, Path)), None)


class Store:
    """Outcomes by job, in a JSON-lines file.

    A last line that was cut off when its process was killed is removed. Histories are not kept.

    Args:
        path: the file; the first outcome creates it and its folder.

    Raises:
        ValueError: a line is not the record of a job.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parsed = read_lines(path, lambda line, number: _parse(line, f"{path}: line {number}"))
        self._lines: dict[str, dict[str, Any]] = {_key(content["job"]): content for content in parsed}

    def find(self, job: Job) -> Outcome | None:
        """The job's outcome, or None if it has not run yet."""
        content = self._lines.get(_key(describe(job)))
        if content is None:
            return None
        runs, alone = _found(content)
        return Outcome(job=job, runs=runs, alone=alone)

    def add(self, outcome: Outcome) -> None:
        """Write the outcome to the end of the file; it is on the disk when this returns.

        Raises:
            ValueError: it cannot be written; the file is as it was.
        """
        content = {
            "job": describe(outcome.job),
            "runs": [dataclasses.asdict(run) for run in outcome.runs],
            "alone": None if outcome.alone is None else dataclasses.asdict(outcome.alone),
        }
        append_line(self.path, json.dumps(content))
        self._lines[_key(content["job"])] = content

    def execute(self, jobs: Sequence[Job], **options: Any) -> Iterator[Outcome]:
        """As `runner.execute`, but jobs that are in the file do not run again.

        Args:
            jobs: what to run.
            options: `processes` and `advance`, passed on; `advance` gets the epochs of jobs in the file at once.
        """
        known = [(job, self.find(job)) for job in jobs]
        for job, outcome in known:
            if outcome is not None:
                if "advance" in options:
                    options["advance"](job.epochs)
                yield outcome
        missing = [job for job, outcome in known if outcome is None]
        if missing:
            for outcome in execute(missing, **options):
                self.add(outcome)
                yield outcome

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the file; the operating system frees the lock of a killed process.

        Raises:
            ValueError: another process holds it.
        """
        lock = self.path.with_suffix(".lock")
        with file_errors(lock), lock.open("a") as file:
            if not _lock(file):
                raise ValueError(
                    f"out: another process is writing to {self.path}; wait until it ends, or name another folder"
                )
            yield


def _lock(file: IO[str]) -> bool:
    """Whether this process now holds the file's lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
        content["job"], _found(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"{place} is not a finished job; name another folder, or delete the file"
        raise ValueError(message) from error
    return content


def _found(content: dict[str, Any]) -> tuple[list[Run], Alone | None]:
    alone = content["alone"]
    return [Run(**run) for run in content["runs"]], None if alone is None else Alone(**alone)


def _key(description: dict[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)
