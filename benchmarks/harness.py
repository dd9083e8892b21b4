"""Times alternatives in one run, interleaved, and stores the figures with pytest-benchmark.

Clock rates and other load change from second to second. Alternatives that take turns within milliseconds are affected
alike, so that the ratio of their times is steadier than either time.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Alternative = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call in each round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median of the seconds per call."""
        return statistics.median(self.seconds)

    def ratio(self, other: Timing) -> float:
        """Return how many times as long this one takes as `other`: the median over rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(
    alternatives: Mapping[str, Alternative], *, rounds: int = 21, seconds: float = 2e-3, warmup: int = 3
) -> dict[str, Timing]:
    """Time every alternative `rounds` times, taking turns, without garbage collection.

    Args:
        alternatives: functions by name. On a GPU they may return before their work is done.
        rounds: turns of each alternative; positive.
        seconds: the least time of a turn, reached by repeating short calls.
        warmup: untimed calls of each alternative before the first round.
    """
    repeats = {}
    for name, call in alternatives.items():
        for _ in range(warmup):
            call()
        repeats[name] = max(1, round(seconds / _time(call, 1)))
    taken: dict[str, list[float]] = {name: [] for name in alternatives}
    gc.collect()
    gc.disable()  # its time depends on what other benchmarks have imported
    try:
        for _ in range(rounds):
            for name, call in alternatives.items():
                taken[name].append(_time(call, repeats[name]))
    finally:
        gc.enable()
    return {name: Timing(tuple(times)) for name, times in taken.items()}


def _time(call: Alternative, repeats: int) -> float:
    _wait()
    start = _now()
    for _ in range(repeats):
        call()
    _wait()
    return (_now() - start) / repeats


def _now() -> float:
    """Return seconds; with a single thread, those of its own work, so that waiting for a core does not count."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time() if alone else time.perf_counter()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_tensor(elements: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Return normal numbers, a repeated million: drawing a hundred million would take longer than timing them."""
    filled = torch.empty(elements, dtype=dtype, device=device)
    block = torch.randn(min(elements, 1_000_000), device=device).to(dtype)
    for part in filled.split(1_000_000):
        part.copy_(block[: part.numel()])
    return filled


@dataclass(frozen=True)
class Memory:
    """The bytes that an alternative must at least move.

    Attributes:
        read: bytes read.
        written: bytes written. The memory bound is an update in place, or a sum if this is 0.
    """

    read: int
    written: int = 0

    @property
    def total(self) -> int:
        """Return the bytes read and written."""
        return self.read + self.written

    def bound(self, device: str = "cpu") -> Alternative:
        """Return a function that moves as many bytes in one flat float32 buffer: the measured memory bound."""
        flat = random_tensor(max(1, self.read // 4), device=device)
        if self.written:
            return lambda: flat.mul_(0.9999999)
        return flat.sum


def few_rounds(elements: int) -> int:
    """Return the number of rounds: larger cases are slower, and steadier."""
    return 21 if elements < 1_000_000 else 11 if elements < 10_000_000 else 7 if elements < 50_000_000 else 3


def compare(
    benchmark: Any,
    ours: Alternative,
    others: Mapping[str, Alternative],
    *,
    memory: Memory | None = None,
    rounds: int = 21,
    device: str = "cpu",
) -> dict[str, float]:
    """Time `ours` and `others` interleaved, record the figures in `benchmark.extra_info`, and return the ratios.

    Recorded are `ms` of each alternative, its `ratio` to ours (above 1: ours is faster), and with `memory` also
    `gb_per_s` of ours and `percent_of_bound`, its share of the speed of the memory bound.

    Args:
        benchmark: the fixture of pytest-benchmark; its own statistics are those of `ours`.
        ours: the alternative that the others are compared with.
        others: what a user would otherwise write, by name.
        memory: the bytes that `ours` must move.
        rounds: turns of each alternative; with at most five there is only one warm-up call.
        device: the device of the memory bound.
    """
    alternatives = {"ours": ours, **others}
    if memory is not None:
        alternatives["memory bound"] = memory.bound(device)
    timings = interleave(alternatives, rounds=rounds, warmup=3 if rounds > 5 else 1)
    ratios = {name: timings[name].ratio(timings["ours"]) for name in others}
    info = {"ms": {name: timing.median * 1e3 for name, timing in timings.items()}, "ratio": ratios}
    if memory is not None:
        info["gb_per_s"] = memory.total / timings["ours"].median / 1e9
        info["percent_of_bound"] = 100 * timings["memory bound"].ratio(timings["ours"])
    benchmark.extra_info.update(info)
    benchmark.pedantic(ours, rounds=5 if rounds > 5 else 1, iterations=1)
    return ratios
