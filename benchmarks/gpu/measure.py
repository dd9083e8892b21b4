"""Runs one section of measurements; __main__.py starts it in its own process."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import Alternative, Timing, interleave

from gpu.budget import Entries
from gpu.capture import capture
from gpu.operators import Settings, operators, sweep
from gpu.steps import host_time, steps

SECTIONS: dict[str, Callable[[Entries, Settings], None]] = {
    "capture": capture,
    "operators": operators,
    "steps": steps,
    "host time": host_time,
    "sweep": sweep,
}


def quick(alternatives: dict[str, Alternative], **_: float) -> dict[str, Timing]:
    """Time every alternative once, to see that it runs."""
    return interleave(alternatives, rounds=1, seconds=0, warmup=1)


def main() -> int:
    """Parse the command line, run the section, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=tuple(SECTIONS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="tiny inputs, timed once")
    arguments = parser.parse_args()
    entries = Entries(arguments.seconds, arguments.out)
    triton = arguments.device == "cuda" and importlib.util.find_spec("triton") is not None
    backends = ("compiled", "triton") if triton else ("compiled",)
    timer = quick if arguments.small else partial(interleave, rounds=11, seconds=1e-2)
    settings = Settings(arguments.device, backends, timer, arguments.small)
    SECTIONS[arguments.section](entries, settings)
    return 1 if entries.report["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
