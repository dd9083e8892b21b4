"""Times named alternatives against each other in one run, interleaved, and keeps the figures with pytest-benchmark.

Clocks and neighbours change from second to second; alternatives that take turns within milliseconds share their
luck, and the ratio of two that ran side by side is steadier than either time.
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
    """Seconds per call over all rounds, in the order they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds per call in the middle round."""
        return statistics.median(self.seconds)

    def ratio(self, other: Timing) -> float:
        """How many times as long this one takes as `other`: the median over rounds run side by side."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(
    alternatives: Mapping[str, Alternative], *, rounds: int = 21, seconds: float = 2e-3, warmup: int = 3
) -> dict[str, Timing]:
    """Time every alternative `rounds` times, taking turns, without Python's garbage collection in between.

    Args:
        alternatives: what to call, by name. On a GPU a call may return before its work is done.
        rounds: how often each has its turn; positive.
        seconds: the least time of a turn, reached by repeating short calls.
        warmup: untimed calls of each before the first round.
    """
    repeats = {}
    for name, call in alternatives.items():
        for _ in range(warmup):
            call()
        repeats[name] = max(1, round(seconds / _time(call, 1)))
    taken: dict[str, list[float]] = {name: [] for name in alternatives}
    gc.collect()
    gc.disable()  # it takes the longer, the more some other benchmark has imported
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
    """Seconds; of one thread's own work where there is but one, so that waiting for a core does not count."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time() if alone else time.perf_counter()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_tensor(elements: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Normal numbers, a million of them over and over: drawing a hundred million takes longer than timing them."""
    filled = torch.empty(elements, dtype=dtype, device=device)
    block = torch.randn(min(elements, 1_000_000), device=device).to(dtype)
    for part in filled.split(1_000_000):
        part.copy_(block[: part.numel()])
    return filled


@dataclass(frozen=True)
class Memory:
    """The bytes that an alternative must move at the least.

    Attributes:
        read: bytes read.
        written: bytes written; the bound is then an update in place, else a sum.
    """

    read: int
    written: int = 0

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    def bound(self, device: str = "cpu") -> Alternative:
        """Plain PyTorch moving as many bytes in one flat float32 buffer: the measured memory bound at this size."""
        flat = random_tensor(max(1, self.read // 4), device=device)
        if self.written:
            return lambda: flat.mul_(0.9999999)
        return flat.sum


def few_rounds(elements: int) -> int:
    """Turns that a case is worth: the larger it is, the steadier and the dearer."""
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
    """Interleave `ours` with `others` and record it all in `benchmark.extra_info`; return the ratios.

    Recorded: `ms` of each alternative, `ratio` of each to ours (above 1: ours is faster), and with `memory` also
    `gb_per_s` of ours from counted bytes and `percent_of_bound`, the share of the measured memory bound's speed.

    Args:
        benchmark: the fixture of pytest-benchmark; its own statistics are of `ours` alone.
        ours: the alternative that the others are compared with.
        others: what a user would otherwise write, by name.
        memory: the bytes `ours` must move.
        rounds: turns of each alternative; up to five are for calls so long that one warms up.
        device: where the memory bound is measured.
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
