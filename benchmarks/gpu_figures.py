"""Figures of every operator on one device, against PyTorch and against the measured copy bandwidth: see gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Memory, interleave
from torch import Tensor

import cggm_ops

DTYPES = (torch.float32, torch.bfloat16)
TENSORS = 200


def make(count: int, elements: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Random tensors, `elements` in all."""
    return [torch.randn(elements // count, device=device).mul_(0.01).to(dtype) for _ in range(count)]


def copy_bandwidth(elements: int, device: str) -> float:
    """GB/s of a copy, bytes read and written counted."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, seconds=1e-2)["copy"]
    return 2 * 4 * elements / timing.median / 1e9


def compare(ours: Callable[[], Any], others: dict[str, Callable[[], Any]], memory: Memory) -> dict[str, Any]:
    """Milliseconds of every alternative, how many times as long as ours each takes, and GB/s of ours."""
    timings = interleave({"ours": ours, **others}, rounds=11, seconds=1e-2)
    return {
        "ms": {name: timing.median * 1e3 for name, timing in timings.items()},
        "ratio": {name: timings[name].ratio(timings["ours"]) for name in others},
        "gb_per_s": memory.total / timings["ours"].median / 1e9,
    }


def scale_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """scale_ with its norms."""
    grads = make(TENSORS, elements, dtype, device)
    owner = [index % 2 for index in range(TENSORS)]
    coefficients = torch.tensor([0.99999, 1.00001], device=device)

    def foreach() -> None:
        for modality in range(2):
            torch._foreach_mul_(grads[modality::2], 0.99999)
        torch._foreach_norm(grads)

    size = elements * dtype.itemsize
    return compare(
        lambda: cggm_ops.scale_(grads, owner, coefficients), {"foreach": foreach}, Memory(size, size)
    )


def modulate_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """modulate_ over a thousand tensors and a head of 64k elements."""
    grads = make(1000, elements, dtype, device)
    owner = [index % 4 for index in range(1000)]
    coefficients = torch.full((4,), 0.99999, device=device)
    fusion, *unimodal = make(5, 5 * 65536, dtype, device)

    def foreach() -> None:
        for modality in range(4):
            torch._foreach_mul_(grads[modality::4], 0.99999)
        torch._foreach_norm(grads)
        for row in unimodal:
            torch.nn.functional.cosine_similarity(fusion, row, dim=0)

    size = elements * dtype.itemsize
    head = 5 * 65536 * dtype.itemsize
    ours = lambda: cggm_ops.modulate_(grads, owner, coefficients, fusion, unimodal)  # noqa: E731
    return compare(ours, {"foreach": foreach}, Memory(size + head, size))


def cosine_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """batched_cosine of four modalities."""
    fusion, *unimodal = make(5, elements, dtype, device)

    def loop() -> None:
        for row in unimodal:
            torch.nn.functional.cosine_similarity(fusion, row, dim=0)

    ours = lambda: cggm_ops.batched_cosine(fusion, unimodal)  # noqa: E731
    return compare(ours, {"cosine_similarity": loop}, Memory(elements * dtype.itemsize))


def gram_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """segment_gram of two sets."""
    sets = [make(TENSORS, elements // 2, dtype, device) for _ in range(2)]

    def dots() -> None:
        for a, b in zip(*sets, strict=True):
            for x, y in ((a, a), (a, b), (b, b)):
                torch.dot(x, y)

    return compare(lambda: cggm_ops.segment_gram(sets), {"dot": dots}, Memory(elements * dtype.itemsize))


def combine_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """segment_combine_ of two sets."""
    sets = [make(TENSORS, elements // 2, dtype, device) for _ in range(2)]
    weights = torch.full((TENSORS, 2), 0.5, device=device)

    def foreach() -> None:
        torch._foreach_mul_(sets[0], 0.5)
        torch._foreach_add_(sets[0], sets[1], alpha=0.5)

    size = elements * dtype.itemsize
    return compare(
        lambda: cggm_ops.segment_combine_(sets, weights), {"foreach": foreach}, Memory(size, size // 2)
    )


def adamw_figures(elements: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """adamw_ with modulation, against torch's fused AdamW without any, and after a foreach scaling."""
    params, grads, exp_avgs, exp_avg_sqs = (make(TENSORS, elements // 4, dtype, device) for _ in range(4))
    torch._foreach_abs_(exp_avg_sqs)
    ours_steps = [torch.tensor(10.0) for _ in params]
    fused_steps = [torch.tensor(10.0, device=device) for _ in params]
    owner = [index % 2 for index in range(TENSORS)]
    modulation = cggm_ops.Modulation(owner=owner, grad_scale=torch.tensor([0.9, 1.1], device=device))
    settings = cggm_ops.AdamSettings(lr=1e-4, weight_decay=0.01)
    options = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8}

    def fused() -> None:
        torch._foreach_add_(fused_steps, 1)
        torch._fused_adamw_(
            params, grads, exp_avgs, exp_avg_sqs, [], fused_steps, amsgrad=False, maximize=False, **options
        )

    def scaled() -> None:
        for modality in range(2):
            torch._foreach_mul_(grads[modality::2], 0.99999)
        fused()

    def ours() -> None:
        states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": ours_steps}
        cggm_ops.adamw_(params, grads, **states, settings=settings, modulation=modulation)

    size = elements // 4 * dtype.itemsize
    return compare(
        ours, {"fused without modulation": fused, "foreach and fused": scaled}, Memory(4 * size, 3 * size)
    )


FIGURES = {
    "scale_": scale_figures,
    "modulate_": modulate_figures,
    "batched_cosine": cosine_figures,
    "segment_gram": gram_figures,
    "segment_combine_": combine_figures,
    "adamw_": adamw_figures,
}


def measure(elements: int, device: str, backends: list[str]) -> dict[str, Any]:
    """All figures: by operator, dtype and backend."""
    copy = copy_bandwidth(elements, device)
    figures: dict[str, Any] = {"elements": elements, "copy_gb_per_s": copy, "ops": {}}
    for name, figure in FIGURES.items():
        for dtype in DTYPES:
            for backend in backends:
                with cggm_ops.use_backend(backend):
                    found = figure(elements, dtype, device)
                found["percent_of_copy"] = 100 * found["gb_per_s"] / copy
                key = f"{name} {str(dtype).removeprefix('torch.')} {backend}"
                figures["ops"][key] = found
                print(
                    f"{key:40s} {found['gb_per_s']:8.1f} GB/s {found['percent_of_copy']:5.1f}% of copy",
                    end="",
                )
                print(
                    "".join(f"  {other} {ratio:.2f}x" for other, ratio in found["ratio"].items()), flush=True
                )
    return figures
