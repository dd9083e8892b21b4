"""A time budget divided over sections, and a report of their results, failures and omissions.

This file uses only the standard library, so that it can report failing imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEAST = 1.0  # seconds: a section does not start with less


class Skipped(Exception):
    """Something was skipped on purpose; the message says why."""


class Failed(Exception):
    """A section failed; its results so far still go into the report.

    Args:
        message: what failed.
        result: the results so far.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class TimedOut(Failed):
    """A program took too long and was stopped."""


@dataclass(frozen=True)
class Section:
    """A section of the program.

    Attributes:
        name: its key in the report.
        share: its weight when the remaining time is divided over the remaining sections.
        run: takes the seconds that the section may take, and returns its result.
    """

    name: str
    share: float
    run: Callable[[float], Any]


@dataclass
class Report:
    """The report, written as JSON after every section, so that a killed run leaves its results so far.

    Attributes:
        path: the file.
        head: entries about the machine, before those of the sections.
    """

    path: Path
    head: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self) -> None:
        """Replace the file atomically: a reader never finds half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name) for name in ("results", "failed", "skipped", "seconds")}
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps({**self.head, **parts}, indent=1) + "\n")
        beside.replace(self.path)


def run_sections(
    sections: Sequence[Section],
    report: Report,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all sections within a time budget; each gets its share of the time that is left.

    Args:
        sections: in the order in which they run.
        report: receives the results, failures and omissions, and is written after each section.
        seconds: the time budget.
        clock: returns seconds.
    """
    begin = clock()
    for index, section in enumerate(sections):
        start = clock()
        left = seconds - (start - begin)
        allotted = left * section.share / sum(other.share for other in sections[index:])
        try:
            if allotted < LEAST:
                raise Skipped(f"no time: {max(left, 0):.1f} s were left for this and the following sections")
            report.results[section.name] = section.run(allotted)
        except Skipped as reason:
            report.skipped[section.name] = str(reason)
        except Exception as error:  # reported, and the other sections still run
            report.failed[section.name] = describe(error)
            if isinstance(error, Failed) and error.result is not None:
                report.results[section.name] = error.result
        report.seconds[section.name] = round(clock() - start, 1)
        report.write()
        print(f"{section.name}: {_word(section.name, report)} ({report.seconds[section.name]} s)", flush=True)
    report.seconds["all"] = round(clock() - begin, 1)
    report.write()


def _word(name: str, report: Report) -> str:
    if name in report.failed:
        return f"FAILED: {report.failed[name]}"
    if name in report.skipped:
        return f"skipped: {report.skipped[name]}"
    result = report.results[name]
    return result if isinstance(result, str) else "done"


def describe(error: BaseException) -> str:
    """Return the type of an error and the end of its message."""
    return f"{type(error).__name__}: {str(error)[-3000:]}"


class Entries:
    """The entries of one section, each of which is measured, fails or is skipped independently.

    Args:
        seconds: the time after which no further entry starts.
        path: a file to write after each entry, or None.
        clock: returns seconds.
    """

    def __init__(
        self, seconds: float, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._end = clock, clock() + seconds
        self._path = path
        self.report: dict[str, dict[str, Any]] = {"figures": {}, "failed": {}, "skipped": {}}

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - self._clock()

    def add(self, key: str, measure: Callable[[], Any]) -> Any:
        """Measure one entry and return it, or None if it failed or was skipped."""
        found = None
        try:
            if self.left <= 0:
                raise Skipped("no time left")
            found = measure()
            self.report["figures"][key] = found
        except Skipped as reason:
            self.report["skipped"][key] = str(reason)
        except Exception as error:  # reported, and the other entries are still measured
            self.report["failed"][key] = describe(error)
            print(f"{key}: FAILED: {describe(error)}", flush=True)
        if self._path is not None:
            beside = self._path.with_suffix(".part")
            beside.write_text(json.dumps(self.report))
            beside.replace(self._path)
        return found


def run_command(command: Sequence[str], seconds: float, *, show: bool = False, **options: Any) -> str:
    """Run a program and return its output; stop it and its child processes when the time is over.

    Args:
        command: the program and its arguments.
        seconds: the time it may take.
        show: print its output instead of returning it.
        options: passed to `subprocess.Popen`.

    Raises:
        TimedOut: it took too long.
        Failed: its exit status was not 0.
    """
    process = subprocess.Popen(
        command,
        stdout=None if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=os.setpgrp,  # so that the compilers that a build starts are stopped with it
        **options,
    )
    what = " ".join(command)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{what}: took more than {seconds:.0f} s and was stopped") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        raise Failed(f"{what}: exit status {process.returncode}\n{(out or '')[-1400:]}\n{err[-1400:]}")
    return out or ""
