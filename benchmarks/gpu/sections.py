"""The sections of measure.py that go over many cases: operators at one size, and over sizes, counts, modalities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

import cggm_ops
from gpu.budget import Entries
from gpu.cases import Case, Timer
from gpu.operators import OPERATORS, copies, measure_operator

MB = 1_000_000
DTYPES = (torch.float32, torch.bfloat16)
PER_MODALITY = ("scale_", "modulate_", "batched_cosine", "adamw_", "sgd_")  # the others know no modalities


@dataclass(frozen=True)
class Settings:
    """What a section is told.

    Attributes:
        device: "cuda" or "cpu".
        backends: whose kernels are measured.
        timer: times alternatives; see harness.interleave.
        small: tiny inputs, to see that everything runs.
    """

    device: str
    backends: tuple[str, ...]
    timer: Timer
    small: bool


def served_by(backend: str, names: Iterable[str]) -> list[str]:
    """The operators that a backend has kernels for."""
    return [name for name in names if backend != "triton" or name in cggm_ops.TRITON_OPERATORS]


def operators(entries: Entries, settings: Settings) -> None:
    """Every operator at one size well beyond the caches, in both dtypes, with every backend."""
    case = Case(MB // 20 if settings.small else 512 * MB, device=settings.device)
    for backend in settings.backends:
        for dtype in DTYPES:
            for name in served_by(backend, OPERATORS):
                add(entries, settings, name, backend, replace(case, dtype=dtype))


def sweep(entries: Entries, settings: Settings) -> None:
    """Sizes, counts of tensors and of modalities, with the backend in use; the ends of each range first."""
    backend = settings.backends[0]
    for case, names in sweep_cases(settings.device, settings.small):
        for name in names:
            add(entries, settings, name, backend, case)


def sweep_cases(device: str, small: bool) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Cases and the operators that they are for, in the order in which they are worth their time."""
    middle = Case(MB // 50 if small else 256 * MB, device=device)
    sizes = (MB // 100, MB // 20) if small else (MB, 1000 * MB, 16 * MB, 256 * MB, 4 * MB, 64 * MB)
    counts = (10, 20) if small else (10, 1000, 100)
    modalities = (3, 16) if small else (16, 4, 8)  # two are measured by the sizes
    for dtype in DTYPES:
        for nbytes in sizes:
            yield replace(middle, nbytes=nbytes, dtype=dtype), tuple(OPERATORS)
        for tensors in counts:
            without = tuple(name for name in OPERATORS if name != "batched_cosine")  # which has M + 1 tensors
            yield replace(middle, tensors=tensors, dtype=dtype), without
        for count in modalities:
            yield replace(middle, modalities=count, dtype=dtype), PER_MODALITY


def add(entries: Entries, settings: Settings, name: str, backend: str, case: Case) -> None:
    """Measure one operator in one case and print a line of it."""
    dtype = str(case.dtype).removeprefix("torch.")
    size = f"{case.nbytes / 1e6:g} MB"
    key = f"{name} {dtype} {backend} {size} {case.tensors} tensors {case.modalities} modalities"

    def figures() -> dict:
        bandwidth = copies(entries, replace(case, dtype=torch.float32), settings.timer)
        return measure_operator(name, backend, case, settings.timer, bandwidth)

    found = entries.add(key, figures)
    if found is not None:
        ratios = "".join(f"  {other} {ratio:.2f}x" for other, ratio in found["ratio"].items())
        share = f"{found['gb_per_s']:8.1f} GB/s {found['percent_of_copy']:5.1f}% of copy"
        print(f"{key:72s} {share}{ratios}", flush=True)
