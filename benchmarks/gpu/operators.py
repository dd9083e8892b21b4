"""Every operator on one device, against PyTorch and against the measured bandwidth of a copy."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import Alternative, Memory, Timing
from operator_cases import OPERATORS, Case

import cggm_ops
from gpu.budget import Entries, Skipped

Timer = Callable[..., dict[str, Timing]]  # interleave, with its rounds and seconds chosen
MB = 1_000_000
DTYPES = (torch.float32, torch.bfloat16)
PER_MODALITY = (
    "scale_",
    "modulate_",
    "batched_cosine",
    "adamw_",
    "sgd_",
)  # the others do not depend on modalities


@dataclass(frozen=True)
class Settings:
    """The settings of all sections of measurements.

    Attributes:
        device: "cuda" or "cpu".
        backends: the backends to measure.
        timer: times alternatives; see harness.interleave.
        small: whether to use tiny inputs, which only show that everything runs.
    """

    device: str
    backends: tuple[str, ...]
    timer: Timer
    small: bool


@dataclass(frozen=True)
class Size:
    """One point of the measurements.

    Attributes:
        nbytes: bytes of all tensors of the operator together.
        tensors: the number of gradients, or of segments of a set.
        modalities: the number of modalities.
        dtype: the dtype of all tensors.
        device: the device of all tensors.
    """

    nbytes: int
    tensors: int = 200
    modalities: int = 2
    dtype: torch.dtype = torch.float32
    device: str = "cuda"

    def case(self, name: str) -> Case:
        """Return the inputs of an operator at this size."""
        lists = OPERATORS[name].lists(self.modalities)
        tensors = 1 if name == "batched_cosine" else self.tensors
        elements = self.nbytes // (self.dtype.itemsize * lists)
        options = {"modalities": self.modalities, "dtype": self.dtype, "device": self.device}
        return Case.even(elements, tensors, **options)


def release(device: str) -> None:
    """Free the memory of finished measurements."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def check_memory(size: Size) -> None:
    """Skip a measurement for which there is no room."""
    release(size.device)
    if size.device != "cuda":
        return
    free, needed = torch.cuda.mem_get_info()[0], 3 * size.nbytes
    if needed > free:
        raise Skipped(f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")


def measure(
    ours: Alternative, others: Mapping[str, Alternative], memory: Memory, timer: Timer
) -> dict[str, Any]:
    """Return each alternative's milliseconds, its time as a multiple of ours, and GB/s of ours."""
    timings = timer({"ours": ours, **others})
    return {
        "ms": {name: timing.median * 1e3 for name, timing in timings.items()},
        "ratio": {name: timings[name].ratio(timings["ours"]) for name in others},
        "gb_per_s": memory.total / timings["ours"].median / 1e9,
    }


def measure_operator(
    name: str, backend: str, size: Size, timer: Timer, copy_gb_per_s: float
) -> dict[str, Any]:
    """Measure one operator at one size, served by `backend`; loops over parameters would take too long."""
    check_memory(size)
    with cggm_ops.use_backend(backend), torch.no_grad():
        serving = cggm_ops.backend(size.device)
        if serving != backend:
            raise RuntimeError(f"{backend} kernels for {size.device} are not there: {serving} would be timed")
        call = OPERATORS[name].make(size.case(name))
        others = {other: function for other, function in call.others.items() if "loop" not in other}
        found = measure(call.ours, others, call.memory, timer)
    return {**found, "percent_of_copy": 100 * found["gb_per_s"] / copy_gb_per_s}


def copy_bandwidth(entries: Entries, size: Size, timer: Timer) -> float:
    """Return the GB/s of a copy that touches as many bytes, measured once."""
    key = f"copy {size.nbytes / 1e6:g} MB"
    if key not in entries.report["figures"]:
        check_memory(size)
        source = torch.zeros(max(1, size.nbytes // 8), device=size.device)
        target, memory = torch.empty_like(source), Memory(source.nbytes, source.nbytes)
        entries.add(key, lambda: measure(lambda: target.copy_(source), {}, memory, timer)["gb_per_s"])
    if key not in entries.report["figures"]:
        raise Skipped(f"no copy bandwidth to compare with: {key} was not measured")
    return entries.report["figures"][key]


def served_by(backend: str, names: Iterable[str]) -> list[str]:
    """Return the operators that a backend has kernels for."""
    return [name for name in names if backend != "triton" or name in cggm_ops.TRITON_OPERATORS]


def operators(entries: Entries, settings: Settings) -> None:
    """Measure every operator at one size well beyond the caches, in both dtypes, with every backend."""
    size = Size(MB // 20 if settings.small else 512 * MB, device=settings.device)
    for backend in settings.backends:
        for dtype in DTYPES:
            for name in served_by(backend, OPERATORS):
                add(entries, settings, name, backend, replace(size, dtype=dtype))


def sweep(entries: Entries, settings: Settings) -> None:
    """Measure sizes, counts of tensors and of modalities with the first backend; the ends of each range first."""
    backend = settings.backends[0]
    for size, names in swept_sizes(settings.device, settings.small):
        for name in served_by(backend, names):
            add(entries, settings, name, backend, size)


def swept_sizes(device: str, small: bool) -> Iterator[tuple[Size, tuple[str, ...]]]:
    """Yield sizes and the operators to measure at each, the most informative ones first."""
    middle = Size(MB // 50 if small else 256 * MB, device=device)
    sizes = (MB // 100, MB // 20) if small else (MB, 1000 * MB, 16 * MB, 256 * MB, 4 * MB, 64 * MB)
    counts = (10, 20) if small else (10, 1000, 100)
    modalities = (3, 16) if small else (16, 4, 8)  # the sizes measure two modalities
    for dtype in DTYPES:
        for nbytes in sizes:
            yield replace(middle, nbytes=nbytes, dtype=dtype), tuple(OPERATORS)
        for tensors in counts:
            without = tuple(
                name for name in OPERATORS if name != "batched_cosine"
            )  # it always has M + 1 tensors
            yield replace(middle, tensors=tensors, dtype=dtype), without
        for count in modalities:
            yield replace(middle, modalities=count, dtype=dtype), PER_MODALITY


def add(entries: Entries, settings: Settings, name: str, backend: str, size: Size) -> None:
    """Measure one operator at one size and print a line about it."""
    dtype = str(size.dtype).removeprefix("torch.")
    numbers = f"{size.nbytes / 1e6:g} MB {size.tensors} tensors {size.modalities} modalities"
    key = f"{name} {dtype} {backend} {numbers}"

    def figures() -> dict:
        bandwidth = copy_bandwidth(entries, size, settings.timer)
        return measure_operator(name, backend, size, settings.timer, bandwidth)

    found = entries.add(key, figures)
    if found is not None:
        ratios = "".join(f"  {other} {ratio:.2f}x" for other, ratio in found["ratio"].items())
        share = f"{found['gb_per_s']:8.1f} GB/s {found['percent_of_copy']:5.1f}% of copy"
        print(f"{key:72s} {share}{ratios}", flush=True)
