"""Every operator on one device, against PyTorch and against the measured copy bandwidth: see __main__.py.

A function of this file makes the inputs of one case and returns what is to be timed against what; `measure` times it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from harness import Alternative, Memory
from torch import Tensor

import cggm_ops
from gpu.budget import Entries, Skipped
from gpu.cases import Case, Contest, Timer, check_memory, size_of

HEAD = 65_536  # elements of a head gradient beside the encoders' gradients


def scale(case: Case) -> Contest:
    """scale_ with its norms."""
    (grads,) = case.make()
    owner, coefficients = case.owner(), case.coefficients()

    def foreach() -> None:
        case.scale_by_foreach(grads)
        torch._foreach_norm(grads)

    size = size_of(grads)
    return Contest(
        lambda: cggm_ops.scale_(grads, owner, coefficients), {"foreach": foreach}, Memory(size, size)
    )


def modulate(case: Case) -> Contest:
    """modulate_ with a head of 64k elements."""
    (grads,) = case.make()
    owner, coefficients = case.owner(), case.coefficients()
    head = replace(case, nbytes=(case.modalities + 1) * HEAD * case.dtype.itemsize)
    ((fusion, *unimodal),) = head.make(tensors=case.modalities + 1)

    def foreach() -> None:
        case.scale_by_foreach(grads)
        torch._foreach_norm(grads)
        for row in unimodal:
            torch.nn.functional.cosine_similarity(fusion, row, dim=0)

    size = size_of(grads)
    ours = lambda: cggm_ops.modulate_(grads, owner, coefficients, fusion, unimodal)  # noqa: E731
    return Contest(ours, {"foreach": foreach}, Memory(size + size_of([fusion, *unimodal]), size))


def cosine(case: Case) -> Contest:
    """batched_cosine: one row per modality and the fusion's."""
    ((fusion, *unimodal),) = case.make(tensors=case.modalities + 1)

    def loop() -> None:
        for row in unimodal:
            torch.nn.functional.cosine_similarity(fusion, row, dim=0)

    ours = lambda: cggm_ops.batched_cosine(fusion, unimodal)  # noqa: E731
    return Contest(ours, {"cosine_similarity": loop}, Memory(size_of([fusion, *unimodal])))


def gram(case: Case) -> Contest:
    """segment_gram of two sets."""
    sets = case.make(2)

    def dots() -> None:
        for a, b in zip(*sets, strict=True):
            for x, y in ((a, a), (a, b), (b, b)):
                torch.dot(x, y)

    return Contest(lambda: cggm_ops.segment_gram(sets), {"dot": dots}, Memory(size_of(*sets)))


def combine(case: Case) -> Contest:
    """segment_combine_ of two sets."""
    sets = case.make(2)
    weights = torch.tensor([[0.6, 0.4]], device=case.device).repeat(case.tensors, 1)

    def foreach() -> None:
        torch._foreach_mul_(sets[0], 0.6)
        torch._foreach_add_(sets[0], sets[1], alpha=0.4)

    ours = lambda: cggm_ops.segment_combine_(sets, weights)  # noqa: E731
    return Contest(ours, {"foreach": foreach}, Memory(size_of(*sets), size_of(sets[0])))


def adamw(case: Case) -> Contest:
    """adamw_ with modulation, against torch's fused AdamW without any, and after a foreach scaling."""
    params, grads, exp_avgs, exp_avg_sqs = case.make(4)
    torch._foreach_abs_(exp_avg_sqs)
    steps = [torch.full((), 10.0, device=case.device) for _ in params]  # where fused AdamW keeps them
    modulation = cggm_ops.Modulation(owner=case.owner(), grad_scale=case.coefficients())
    settings = cggm_ops.AdamSettings(lr=1e-4, weight_decay=0.01)
    options = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8}

    def fused() -> None:
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params, grads, exp_avgs, exp_avg_sqs, [], steps, amsgrad=False, maximize=False, **options
        )

    def ours() -> None:
        states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}
        cggm_ops.adamw_(params, grads, **states, settings=settings, modulation=modulation)

    size = size_of(params)
    return Contest(ours, _against(case, grads, fused), Memory(4 * size, 3 * size))


def sgd(case: Case) -> Contest:
    """sgd_ with modulation and without momentum, against torch's fused SGD."""
    return _sgd(case, 0.0)


def sgd_momentum(case: Case) -> Contest:
    """sgd_ with modulation and momentum, against torch's fused SGD."""
    return _sgd(case, 0.9)


def _sgd(case: Case, momentum: float) -> Contest:
    params, grads, *rest = case.make(3 if momentum else 2)
    buffers = rest[0] if momentum else []
    modulation = cggm_ops.Modulation(owner=case.owner(), grad_scale=case.coefficients())
    settings = cggm_ops.SGDSettings(lr=1e-4, momentum=momentum)
    options = {"lr": 1e-4, "momentum": momentum, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}

    def fused() -> None:
        torch._fused_sgd_(params, grads, buffers, maximize=False, is_first_step=False, **options)

    def ours() -> None:
        cggm_ops.sgd_(params, grads, momentum_buffers=buffers, settings=settings, modulation=modulation)

    size = size_of(params)
    memory = Memory((3 if momentum else 2) * size, (2 if momentum else 1) * size)
    return Contest(ours, _against(case, grads, fused), memory)


def _against(case: Case, grads: list[Tensor], fused: Alternative) -> dict[str, Alternative]:
    def scaled() -> None:
        case.scale_by_foreach(grads)
        fused()

    return {"fused without modulation": fused, "foreach and fused": scaled}


OPERATORS: dict[str, Callable[[Case], Contest]] = {
    "scale_": scale,
    "modulate_": modulate,
    "batched_cosine": cosine,
    "segment_gram": gram,
    "segment_combine_": combine,
    "adamw_": adamw,
    "sgd_": sgd,
    "sgd_ with momentum": sgd_momentum,
}


def copy(case: Case) -> Contest:
    """A copy that touches as many bytes: the yardstick."""
    ((source,),) = replace(case, nbytes=case.nbytes // 2).make(tensors=1)
    target = torch.empty_like(source)
    return Contest(lambda: target.copy_(source), {}, Memory(source.nbytes, source.nbytes))


def measure(contest: Contest, timer: Timer) -> dict[str, Any]:
    """Milliseconds of every alternative, how many times as long as ours each takes, and GB/s of ours."""
    timings = timer({"ours": contest.ours, **contest.others})
    return {
        "ms": {name: timing.median * 1e3 for name, timing in timings.items()},
        "ratio": {name: timings[name].ratio(timings["ours"]) for name in contest.others},
        "gb_per_s": contest.memory.total / timings["ours"].median / 1e9,
    }


def measure_operator(
    name: str, backend: str, case: Case, timer: Timer, copy_gb_per_s: float
) -> dict[str, Any]:
    """The figures of one operator in one case, served by `backend`."""
    check_memory(case)
    with cggm_ops.use_backend(backend), torch.no_grad():
        serving = cggm_ops.backend(case.device)
        if serving != backend:
            raise RuntimeError(f"{backend} kernels for {case.device} are not there: {serving} would be timed")
        found = measure(OPERATORS[name](case), timer)
    return {**found, "percent_of_copy": 100 * found["gb_per_s"] / copy_gb_per_s}


def copies(entries: Entries, case: Case, timer: Timer) -> float:
    """GB/s of a copy that touches as many bytes as the case, measured once."""
    key = f"copy {case.nbytes / 1e6:g} MB"
    if key not in entries.report["figures"]:
        check_memory(case)
        entries.add(key, lambda: measure(copy(case), timer)["gb_per_s"])
    if key not in entries.report["figures"]:
        raise Skipped(f"no copy bandwidth to compare with: {key} was not measured")
    return entries.report["figures"][key]
