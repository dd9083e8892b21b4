"""A time budget divided over sections, and a report that keeps what each gave, why it failed, or why it was left out.

Nothing but the standard library: this has to work where an import is what fails.
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

LEAST = 1.0  # seconds: with less than this, a section is not even begun


class Skipped(Exception):
    """Something was left out on purpose; the message says why."""


class Failed(Exception):
    """A section failed; what it had found until then goes into the report all the same.

    Args:
        message: what failed.
        result: what was found before.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class TimedOut(Failed):
    """A program took longer than it may, and was ended."""


@dataclass(frozen=True)
class Section:
    """A part of the whole.

    Attributes:
        name: its key in the report.
        share: of the time that is left when its turn comes, in proportion to the shares of those still to come.
        run: given the seconds it may take, returns what goes into the report.
    """

    name: str
    share: float
    run: Callable[[float], Any]


@dataclass
class Report:
    """What is written as JSON, after every section: a run that is killed leaves what it had.

    Attributes:
        path: the file.
        head: what stands before the sections, about the machine.
    """

    path: Path
    head: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self) -> None:
        """Replace the file at once, so that a reader never finds half of it."""
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
    """Run all sections within `seconds`, each in its share of what the ones before it have left.

    Args:
        sections: in the order in which they run.
        report: gets the results, failures and omissions, and is written after each section.
        seconds: for all of them.
        clock: seconds since any moment.
    """
    begin = clock()
    for index, section in enumerate(sections):
        start = clock()
        left = seconds - (start - begin)
        allotted = left * section.share / sum(other.share for other in sections[index:])
        try:
            if allotted < LEAST:
                raise Skipped(f"no time: {max(left, 0):.1f} s were left for this and all that follows")
            report.results[section.name] = section.run(allotted)
        except Skipped as reason:
            report.skipped[section.name] = str(reason)
        except Exception as error:  # whatever it is, the other sections run and the exit status tells
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
    """The type and the end of the message of an error."""
    return f"{type(error).__name__}: {str(error)[-3000:]}"


class Entries:
    """The entries of one section: each is measured, fails or is left out for itself.

    Args:
        seconds: after which no further entry is begun.
        path: where to keep them after each, if anywhere.
        clock: seconds since any moment.
    """

    def __init__(
        self, seconds: float, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._end = clock, clock() + seconds
        self._path = path
        self.report: dict[str, dict[str, Any]] = {"figures": {}, "failed": {}, "skipped": {}}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - self._clock()

    def add(self, key: str, measure: Callable[[], Any]) -> Any:
        """Measure one entry and return it; None where it failed or was skipped."""
        found = None
        try:
            if self.left <= 0:
                raise Skipped("no time left")
            found = measure()
            self.report["figures"][key] = found
        except Skipped as reason:
            self.report["skipped"][key] = str(reason)
        except Exception as error:  # recorded, and the exit status tells
            self.report["failed"][key] = describe(error)
            print(f"{key}: FAILED: {describe(error)}", flush=True)
        if self._path is not None:
            beside = self._path.with_suffix(".part")
            beside.write_text(json.dumps(self.report))
            beside.replace(self._path)
        return found


def run_command(command: Sequence[str], seconds: float, *, show: bool = False, **options: Any) -> str:
    """Run a program, and end it with all that it started when the time is over; return its output.

    Args:
        command: the program and its arguments.
        seconds: that it may take.
        show: let its output appear instead of returning it.
        options: as `subprocess.Popen` takes them.

    Raises:
        TimedOut: it took longer.
        Failed: its exit status was not 0.
    """
    process = subprocess.Popen(
        command,
        stdout=None if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=os.setpgrp,  # so that the compilers that a build has started end with it
        **options,
    )
    what = " ".join(command)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{what}: took more than {seconds:.0f} s and was ended") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        raise Failed(f"{what}: exit status {process.returncode}\n{(out or '')[-1400:]}\n{err[-1400:]}")
    return out or ""
