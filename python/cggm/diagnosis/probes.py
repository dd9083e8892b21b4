"""What the encoders of a trained model have learnt, and what the model makes of each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..junctions.layouts import Layout
from ..model.coalitions import CoalitionForward, in_evaluation
from ..model.relearning import pooled_features, purity, run_model
from ..model.shapley import coalitions
from ..policies import AGM
from ..tasks import Task
from .training import Run

_PROBE_STEPS = 300
_PURITY_ROWS = 1000  # k-means starts ten times

Data = list[tuple[Any, Tensor]]


def linear_probe(
    task: Task, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], outputs: int
) -> float:
    """Validation score of a linear layer trained on frozen features, standardized, with a penalty of `‖W‖² / 2N`.

    It starts at zero and takes 300 full steps of Adam at falling rates, so it draws no random numbers.

    Args:
        task: trains and scores it.
        train: features `[N, D]` and targets.
        validation: the same, of other samples.
        outputs: as many as the model's head has.
    """
    (x, y), (other, truth) = train, validation
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x, other = ((part - mean) / scale for part in (x, other))
    x, other = torch.nan_to_num(x), torch.nan_to_num(other)  # a diverged encoder has no features
    weight = x.new_zeros(outputs, x.shape[1], requires_grad=True)
    bias = x.new_zeros(outputs, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _PROBE_STEPS)
    for _ in range(_PROBE_STEPS):
        optimizer.zero_grad()
        loss = task.loss(x @ weight.T + bias, y) + weight.square().sum() / (2 * len(x))
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(task.score(other @ weight.T + bias, truth))


def chance(task: Task, train: Tensor, validation: Tensor, outputs: int) -> float:
    """Validation score of the best constant answer: a probe that sees no features."""
    nothing = (train.new_zeros(len(target), 1, dtype=torch.float32) for target in (train, validation))
    return linear_probe(task, *zip(nothing, (train, validation), strict=True), outputs)  # type: ignore[arg-type]


class Features(NamedTuple):
    """The features of M encoders `[N, D]`, and the targets."""

    values: list[Tensor]
    target: Tensor


def features_of(run: Run, data: Data, name: str) -> Features:
    """The pooled features of the run's encoders in evaluation mode."""
    with torch.no_grad():
        return Features(*pooled_features(run.optimizer._model, data, name))


def purity_gaps(train: Features, validation: Features, classes: int) -> list[float]:
    """How much purer the classes' clusters are on training than on validation samples, per modality."""
    found = []
    for pair in zip(train.values, validation.values, strict=True):
        first, second = (
            purity(
                torch.nan_to_num(x[:_PURITY_ROWS], posinf=0.0, neginf=0.0),
                part.target[:_PURITY_ROWS],
                classes,
            )
            for x, part in zip(pair, (train, validation), strict=True)
        )
        found.append(float(first - second))
    return found


class Contributions(NamedTuple):
    """What a trained model makes of its modalities, on the validation samples."""

    score: float  # of the model
    masked: list[float]  # without each modality: its features are zero
    permuted: list[float] | None  # with another sample's features of it; None where the axes do not allow it
    shapley: list[float]  # share of each modality in the score above that of all features zero
    surprise: list[float] | None  # AGM's s_i, of the Shapley responses


def contributions(run: Run, data: Data) -> Contributions:
    """Run the fusion again and again, with some features zeroed or exchanged between the samples.

    Raises:
        RuntimeError: the fusion cannot run again; see `CoalitionForward`.
    """
    model, task = run.optimizer._model, run.setting.task
    count = len(model.encoders.names)
    everyone = tuple(range(count))
    asked, weights = coalitions(count)
    without = [tuple(i for i in everyone if i != left) for left in everyone]
    sets = list(dict.fromkeys([*asked, *without, ()]))
    batch_first = all(
        not isinstance(x, Layout) or (x.samples_axis == 0 and not x.grouped) for x in _layouts(model)
    )
    outputs: dict[Any, list[Tensor]] = {key: [] for key in [*sets, *everyone]}
    targets = [target for _, target in data]
    forward = CoalitionForward(model.module, model._head_path, model.encoders)
    forward.attach()
    try:
        for inputs, target in data:
            with in_evaluation(model.module), torch.enable_grad():
                run_model(model.module, inputs)
                found = [x.detach() for x in forward.features]
                for members in sets:
                    kept = [x if i in members else torch.zeros_like(x) for i, x in enumerate(found)]
                    outputs[members].append(forward(kept).detach())
                order = torch.randperm(len(target), device=target.device) if batch_first else None
                for i in everyone if batch_first else ():
                    mixed = [x[order] if i == j else x for j, x in enumerate(found)]
                    outputs[i].append(forward(mixed).detach())
            model.forget()
            forward.forget()
    finally:
        forward.detach()
        for hook in model.encoders.hooks:
            hook.keeps_output = False
        model.forget()
    target = torch.cat(targets)
    joined = {key: torch.cat(parts) for key, parts in outputs.items() if parts}
    score = {key: float(task.score(value, target)) for key, value in joined.items()}
    gains = [score[members] - score[()] for members in asked]
    values = [sum(w * gain for w, gain in zip(row, gains, strict=True)) for row in weights]
    total = sum(values)
    responses = [sum(w * joined[s] for w, s in zip(row, asked, strict=True)) for row in weights]
    return Contributions(
        score[everyone],
        [score[members] for members in without],
        [score[i] for i in everyone] if batch_first else None,
        [value / total if total else float("nan") for value in values],
        surprises(task, responses, target),
    )


def _layouts(model: Any) -> Iterable[Any]:
    return model.encoders.layouts.values()


def surprises(task: Task, outputs: Sequence[Tensor], target: Tensor) -> list[float]:
    """AGM's `s_i`: the mean of `−log` of the confidence in the truth."""
    return (-AGM().measure(task, outputs, target)).tolist()


def classifier_outputs(run: Run, data: Data) -> tuple[list[Tensor], Tensor]:
    """What the unimodal classifiers say on the validation samples: M outputs `[N, ...]`, and the targets."""
    model = run.optimizer._model
    outputs: list[list[Tensor]] = [[] for _ in model.encoders.names]
    for inputs, target in data:
        with in_evaluation(model.module), torch.enable_grad():
            run_model(model.module, inputs)
            (read,) = model.read_features(None, target, detach=True)
            evaluated = model.classifiers(read.features, run.setting.task, target, masks=read.masks)
        for into, output in zip(outputs, evaluated.outputs, strict=True):
            into.append(output.detach())
        model.forget()
    return [torch.cat(parts) for parts in outputs], torch.cat([target for _, target in data])
