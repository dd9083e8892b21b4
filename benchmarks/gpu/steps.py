"""Whole training steps, eager and captured in a CUDA graph, and the host time of balance() and step()."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu.budget import Entries
from gpu.models import BY_HAND, FULL, JOINT, MANY_TENSORS, OPTIMIZERS, SMALL, WAYS, WRAPPED, Shape, Training
from gpu.operators import Settings, Timer, release

WARMUP = 3  # steps before a capture: they create states, tables and workspaces


def steps(entries: Entries, settings: Settings) -> None:
    """Show for each optimizer that nothing waits and that a captured step replays like an eager one; time the steps."""
    shape = SMALL if settings.small else FULL
    if settings.device == "cuda":
        for optimizer in OPTIMIZERS:
            for way in WRAPPED:
                entries.add(
                    f"never waits, {optimizer}, {way}", lambda o=optimizer, w=way: never_waits(w, o, "cuda")
                )
                if "Dropout" not in way:  # a replay draws other random numbers
                    entries.add(
                        f"replays, {optimizer}, {way}", lambda o=optimizer, w=way: replays(w, o, "cuda")
                    )
    for captured in (False, True) if settings.device == "cuda" else (False,):
        for optimizer in OPTIMIZERS:
            key = f"{'captured' if captured else 'eager'}, {optimizer}"
            call = lambda o=optimizer, c=captured: time_steps(o, shape, settings, captured=c)  # noqa: E731
            found = entries.add(key, call)
            if found is not None:
                print(key, *(f"  {way} {ms:.3f} ms" for way, ms in found["ms"].items()), flush=True)


def host_time(entries: Entries, settings: Settings) -> None:
    """Measure the host time of balance() and of step() for each optimizer."""
    shape, iterations = (SMALL, 3) if settings.small else (MANY_TENSORS, 100)
    for optimizer in OPTIMIZERS:
        found = entries.add(optimizer, lambda o=optimizer: time_host(o, shape, settings.device, iterations))
        if found is not None:
            for way, figures in found["us"].items():
                print(f"{optimizer} {way}", *(f"  {k} {v:.0f} us" for k, v in figures.items()), flush=True)


def time_steps(optimizer: str, shape: Shape, settings: Settings, *, captured: bool) -> dict[str, Any]:
    """Time a step in every way; return milliseconds, and multiples of joint training with and without classifiers."""
    release(settings.device)
    trainings = {way: Training(way, optimizer, shape, settings.device, captured=captured) for way in WAYS}
    calls = {way: capture(training) if captured else training for way, training in trainings.items()}
    timer: Timer = settings.timer
    timings = timer(calls, seconds=0.1)
    encoders = trainings[JOINT].model.parameters()
    return {
        "parameters": sum(parameter.numel() for parameter in encoders),
        "ms": {way: timing.median * 1e3 for way, timing in timings.items()},
        "of joint": {way: timing.ratio(timings[JOINT]) for way, timing in timings.items()},
        "of joint with classifiers": {way: timing.ratio(timings[BY_HAND]) for way, timing in timings.items()},
        "fused": {way: t.wrapper.uses_fused_step for way, t in trainings.items() if t.wrapper is not None},
    }


def capture(step: Callable[[], Any]) -> Callable[[], None]:
    """Take the step `WARMUP` times, capture it in a CUDA graph, and return the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def never_waits(way: str, optimizer: str, device: str) -> str:
    """Take steps while waiting for the device is an error."""
    training = Training(way, optimizer, SMALL, device)
    for _ in range(WARMUP):
        training()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(WARMUP):
            training()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no synchronization in a whole step"


def replays(way: str, optimizer: str, device: str, count: int = 20) -> dict[str, float]:
    """Show that the loss falls as far by replayed steps as by eager ones."""
    shape = Shape(SMALL.width, SMALL.layers, SMALL.tokens, SMALL.batch, autocast=False)
    eager, replayed = (Training(way, optimizer, shape, device) for _ in range(2))
    before = eager.forward().item()
    for _ in range(WARMUP + count):
        eager()
    replay = capture(replayed)
    for _ in range(count):
        replay()
    return compare_falls(before, eager.forward().item(), replayed.forward().item())


def compare_falls(before: float, eager: float, replayed: float) -> dict[str, float]:
    """Fail unless both losses have fallen by the same amount, within one percent; return them."""
    fall = before - eager
    if not fall > 0 or not abs(replayed - eager) <= 0.01 * fall:
        raise RuntimeError(
            f"loss {before}, after eager steps {eager}, after as many replayed ones {replayed}"
        )
    return {"before": before, "eager": eager, "replayed": replayed}


def time_host(optimizer: str, shape: Shape, device: str, iterations: int) -> dict[str, Any]:
    """Measure the microseconds until the calls return, starting with an idle device.

    For joint training with hand-written classifiers, `balance` is the time of their forward passes and losses.
    """
    release(device)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    trainings = {way: Training(way, optimizer, shape, device) for way in WAYS}
    taken: dict[str, dict[str, list[float]]] = {way: {"balance": [], "step": []} for way in WAYS}
    for iteration in range(WARMUP + iterations):
        for way, training in trainings.items():
            balance, step = _host_once(training, wait)
            if iteration >= WARMUP:
                taken[way]["balance"].append(balance * 1e6)
                taken[way]["step"].append(step * 1e6)
    medians = {
        way: {call: statistics.median(times) for call, times in calls.items()} for way, calls in taken.items()
    }
    beyond = {
        way: {call: medians[way][call] - medians[BY_HAND][call] for call in ("balance", "step")}
        for way in WRAPPED
    }
    tensors = len(list(trainings[JOINT].model.parameters()))
    return {"tensors": tensors, "us": medians, "us beyond hand-written classifiers": beyond}


def _host_once(training: Training, wait: Callable[[], None]) -> tuple[float, float]:
    training.optimizer.zero_grad()
    loss = training.forward()
    wait()
    begin = time.perf_counter()
    total = training.balance(loss)
    balance = time.perf_counter() - begin
    total.backward()
    wait()
    begin = time.perf_counter()
    training.optimizer.step()
    return balance, time.perf_counter() - begin
