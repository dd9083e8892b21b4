"""Scores each modality by itself: the unimodal losses, and the scores that the policy's roles compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..policies.base import Role
from ..policies.plan import Plan
from ..policies.scores import MaskedScores
from ..tasks import Classification, Task
from .coalitions import ShapleyAttribution
from .multimodal import CapturedRun, MultimodalModel
from .retrieval import compared_in_batch


class ModalityScores(NamedTuple):
    """The modalities' losses and scores in a forward pass."""

    unimodal: (
        Tensor | None
    )  # the sum of the M unimodal losses, 0-dimensional, with its graph; None: there are none
    scores: (
        Tensor | None
    )  # [R, M] float32, a row for each role that reads scores; higher is better; None: not measured
    samples: int  # in the batch
    attribution: ShapleyAttribution | None  # the modalities' responses, where a role reads them
    diagnostics: Mapping[str, Tensor]  # further statistics, [M] each


def score_modalities(
    model: MultimodalModel,
    plan: Plan,
    task: Task,
    loss: Tensor,
    target: Any,
    *,
    fit: bool,
    measure: bool = True,
) -> ModalityScores:
    """Score the modalities on the forward pass just made, by unimodal classifiers where there are some.

    A loss of several forward passes, as in siamese training, has the mean over them of losses and scores.

    Args:
        model: holds those features and the classifiers.
        plan: whether the features are detached, and which roles read which scores.
        task: its loss trains the classifiers.
        loss: the multimodal loss, which tells the passes that it comes from.
        target: in a form that the task knows.
        fit: as in `UnimodalClassifiers`.
        measure: whether masked scores are due in this step.

    Raises:
        RuntimeError: no forward pass since the last one that was scored.
        ValueError: a target that does not fit.
    """
    if not model.has_classifiers:
        return _score_without_classifiers(model, plan, task, loss, target, measure)
    runs = model.read_features(loss, target, plan.detaches_features)
    scored = [_score_run(model, plan, task, run, target, fit) for run in runs]
    unimodal, losses, rows, attribution = scored[0]
    if len(runs) > 1:
        unimodal = torch.stack([each[0] for each in scored]).mean()
        losses = torch.stack([each[1] for each in scored]).mean(0)
        rows = list(torch.stack([torch.stack(each[2]) for each in scored]).mean(0))
    diagnostics = {"unimodal_losses": losses}
    if plan.coefficients is not None:
        diagnostics |= plan.coefficients.diagnostics(rows[0], losses)
    scores = rows[0][None] if len(rows) == 1 else torch.stack(rows)
    return ModalityScores(unimodal, scores, target.shape[0], attribution, diagnostics)


@torch.no_grad()
def _score_without_classifiers(
    model: MultimodalModel, plan: Plan, task: Task, loss: Tensor, target: Any, measure: bool
) -> ModalityScores:
    runs = model.encoders.features(loss)
    samples = model.count_samples(runs[0], target)
    if not measure:
        return ModalityScores(None, None, samples, None, {})
    if isinstance(plan.scores, MaskedScores):
        found = [(task, model.masked.outputs_alone(len(runs)), target)]
    else:
        task = Classification()
        found = [
            (task, *compared_in_batch(run, model.encoders.names, plan.scores.temperature)) for run in runs
        ]
    rows = [torch.stack([_measure(role, *each) for each in found]).mean(0) for role in plan.scorers]
    return ModalityScores(None, torch.stack(rows), samples, None, {})


def _measure(role: Role | None, task: Task, outputs: Sequence[Any], target: Any) -> Tensor:
    if role is None or role.score_kind == "loss":
        return torch.stack([-task.loss(output, target).float() for output in outputs])
    return role.measure(task, outputs, target)


def _score_run(
    model: MultimodalModel, plan: Plan, task: Task, run: CapturedRun, target: Tensor, fit: bool
) -> tuple[Tensor, Tensor, list[Tensor], ShapleyAttribution | None]:
    """Of one forward pass: the sum of the unimodal losses, each of them `[M]`, the scores' rows, the responses."""
    unimodal, losses, outputs = model.classifiers(run.features, task, target, masks=run.masks, fit=fit)
    reader = plan.reads("responses")
    attribution = None if reader is None else model.coalitions.attribute(reader.permutations)
    rows: list[Tensor] = []
    for role in plan.scorers:
        if role is None or role.score_kind == "loss":
            rows.append(-losses)
            continue
        if role.score_source == "responses":
            compared = attribution.responses()
        elif role.score_source == "head":
            compared = model.head_split.split(run.captured)
        else:
            compared = [output.detach() for output in outputs]
        rows.append(role.measure(task, compared, target))
    return unimodal, losses, rows, attribution
