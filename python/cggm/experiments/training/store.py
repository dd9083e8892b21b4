"""A file with one line of JSON per finished job, so that a killed comparison can resume."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
        "dataset": experiment.name,
        "optimizer": job.optimizer,
        "seed": job.seed,
        "epochs": job.epochs,
        "only_accuracy": job.only_accuracy,
        "methods": {
            name: [repr(method), job.learning_rates.get(name, own)] for name, method in job.methods.items()
        },
    }


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
        self._lines: dict[str, dict[str, Any]] = {}
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            content = _parse(line, f"{path}: line {number}")
            self._lines[_key(content["job"])] = content
        if len(whole) < len(written):
            os.truncate(path, len(whole))  # in place: a full disk or a kill loses nothing else

    def find(self, job: Job) -> Outcome | None:
        """The job's outcome, or None if it has not run yet."""
        content = self._lines.get(_key(describe(job)))
        if content is None:
            return None
        alone = content["alone"]
        return Outcome(
            job=job,
            runs=[Run(**run) for run in content["runs"]],
            alone=None if alone is None else Alone(**alone),
        )

    def add(self, outcome: Outcome) -> None:
        """Append the outcome to the file."""
        content = {
            "job": describe(outcome.job),
            "runs": [dataclasses.asdict(run) for run in outcome.runs],
            "alone": None if outcome.alone is None else dataclasses.asdict(outcome.alone),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(content).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
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


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"job", "runs", "alone"} <= set(content):
        raise ValueError(f"{place} is not a finished job; choose another folder or delete the file")
    return content


def _key(description: dict[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)
