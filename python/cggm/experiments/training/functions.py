"""Comparisons on a function of the user's: `train(wrap, seed) -> metrics`, called once per method and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

import cggm
from cggm import CGGMOptimizerWrapper

from ..datasets.own import explain
from ..output import append_line, read_lines
from .methods import Method

Train = Callable[[Callable[..., Optimizer], int], Mapping[str, float]]


class FunctionRun(NamedTuple):
    """What one call of the function returned."""

    name: str
    method: str
    seed: int
    metrics: dict[str, float]


def wrapping(method: Method) -> Callable[..., Optimizer]:
    """The `wrap` of a method: `wrap(optimizer, model, encoders=..., head=...)` returns the optimizer to train with.

    That is the wrapper with the method's policy, or the plain optimizer for joint training. Further keyword arguments
    are those of `CGGMOptimizerWrapper`, for instance `task`. `loss = optimizer.balance(loss, target)` also works on
    what joint training gets: there it returns the loss.

    Raises:
        ValueError: the method changes the model or the rates, or clips, which a function has to do itself.
    """
    if method.clip is not None or method.encoder_rates != () or method.fusion != "model":
        raise ValueError(
            "methods: a function trains joint and methods that are a policy alone; it has to clip, set rates per "
            "encoder or build an ensemble itself"
        )

    def wrap(optimizer: Optimizer, model: nn.Module, **arguments: Any) -> Optimizer:
        if method.policy is None:
            optimizer.balance = lambda loss, *_, **__: loss  # type: ignore[attr-defined]
            return optimizer
        settings = {"policy": method.policy, "apply": method.apply} | arguments
        return CGGMOptimizerWrapper(optimizer, model, **settings)

    return wrap


def check_metrics(name: str, found: object) -> dict[str, float]:
    """The metrics as numbers.

    Raises:
        ValueError: no dict of names and finite numbers.
    """
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"experiment {name!r}: must return metrics, a dict of names and numbers, got {type(found).__name__}"
        )
    metrics = {}
    for key, value in found.items():
        try:
            metrics[str(key)] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"experiment {name!r}: metric {key!r} must be a number, got {type(value).__name__}"
            ) from error
        if not math.isfinite(metrics[str(key)]):
            raise ValueError(f"experiment {name!r}: metric {key!r} must be finite, got {value}")
    return metrics


def run_function(
    name: str,
    train: Train,
    *,
    methods: Mapping[str, Method],
    seeds: Iterable[int],
    path: Path,
    found: list[FunctionRun],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Call the function for every seed and method that is not in the file, in this process.

    Args:
        name: what the function is called in results.
        train: the function; PyTorch's generator is seeded before each call.
        methods: name -> method.
        seeds: passed to the function.
        path: JSON-lines file of the runs, read first and then appended to.
        found: the runs are added here as they come, so that an interrupt leaves what there is.
        advance: called after every run.

    Raises:
        ValueError: the function fails or returns something else than metrics, or a method that it cannot train.
    """
    wraps = {method: wrapping(settings) for method, settings in methods.items()}
    known = _known(path)
    for seed in seeds:
        for method, wrap in wraps.items():
            job = [cggm.__version__, name, method, repr(methods[method]), seed]
            metrics = known.get(json.dumps(job))
            if metrics is None:
                torch.manual_seed(seed)
                try:
                    returned = train(wrap, seed)
                except Exception as error:  # the user's code
                    raise ValueError(
                        f"experiment {name!r} failed with {method}, seed {seed}: {explain(error)}"
                    ) from error
                metrics = check_metrics(name, returned)
                append_line(path, json.dumps({"job": job, "metrics": metrics}))
            found.append(FunctionRun(name, method, seed, metrics))
            advance()


def _known(path: Path) -> dict[str, dict[str, float]]:
    """Metrics by job, of a file whose last line may be cut off; that line is removed."""

    def parse(line: bytes, number: int) -> tuple[str, dict[str, float]]:
        try:
            content = json.loads(line)
            return json.dumps(content["job"]), content["metrics"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} holds something else than runs; name another folder, or delete it"
            ) from error

    return dict(read_lines(path, parse))
