"""Scores each modality by itself: the unimodal losses, and the scores that the policy's roles compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..policies.base import Role
from ..policies.plan import Plan
from ..policies.scores import MaskedScores
from ..tasks import Classification
from ..tasks.calls import TaskCalls
from ..tasks.structures import map_tensors
from .captured import CapturedRun, count_samples
from .multimodal import MultimodalModel
from .presence import check_present
from .retrieval import compared_in_batch
from .shapley import ShapleyAttribution


class ModalityScores(NamedTuple):
    """The modalities' losses and scores in a forward pass."""

    # The sum of the finite unimodal losses, 0-dimensional, with its graph; None without classifiers.
    unimodal: Tensor | None
    bad: Tensor | None  # bool [M], which of those losses are not finite
    # [R, M] float32, a row for each role that reads scores; higher is better; not finite: nothing to score. None: not
    # measured in this step.
    scores: Tensor | None
    samples: int | Tensor  # how many the scores are means over; [M] if the modalities differ
    attribution: ShapleyAttribution | None  # the modalities' responses, where a role reads them
    diagnostics: Mapping[str, Tensor]  # further statistics, [M] each


def score_modalities(
    model: MultimodalModel,
    plan: Plan,
    task: TaskCalls,
    loss: Tensor,
    target: Any,
    *,
    fit: bool,
    measure: bool = True,
    present: Mapping[str, Tensor | bool] | None = None,
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
        present: modality -> bool `[B]`, the samples that have it; None if all have all.

    Raises:
        RuntimeError: no forward pass since the last one that was scored.
        TypeError: `present` that is no mapping of masks, or with a task that cannot leave samples out.
        ValueError: a target that does not fit, `present` that does not fit or with a policy that cannot use it.
    """
    model.listed.check(loss)
    if present is not None:
        check_present(present, model.encoders.names)
    if not plan.scores.classifiers:
        if present is not None:
            raise ValueError('present needs scores="classifiers": other scores compare whole batches')
        return _score_without_classifiers(model, plan, task, loss, target, measure)
    runs = model.read_features(loss, target, plan.detaches_features, present)
    samples, presence = runs[0].samples, runs[0].presence
    if presence is not None:
        task, samples = task.among(presence.masks), presence.counts
    scored = [_score_run(model, plan, task, run, target, fit) for run in runs]
    losses, rows, attribution = scored[0]
    if len(runs) > 1:
        losses = torch.stack([each[0] for each in scored]).mean(0)
        rows = torch.stack([each[1] for each in scored]).mean(0)
    unimodal, bad = model.guard.total(losses, None if presence is None else presence.counts)
    losses = losses.detach()
    diagnostics = {"unimodal_losses": losses}
    if plan.coefficients is not None:
        diagnostics |= plan.coefficients.diagnostics(rows[0], losses)
    return ModalityScores(unimodal, bad, rows, samples, attribution, diagnostics)


@torch.no_grad()
def _score_without_classifiers(
    model: MultimodalModel, plan: Plan, task: TaskCalls, loss: Tensor, target: Any, measure: bool
) -> ModalityScores:
    runs = model.encoders.features(loss)
    samples = count_samples(model.readers, runs[0], target)
    if not measure:
        return ModalityScores(None, None, None, samples, None, {})
    if isinstance(plan.scores, MaskedScores):
        found = [(task, model.masked.outputs_alone(len(runs)), target)]
    else:
        task = TaskCalls(Classification())
        found = [
            (task, *compared_in_batch(run, model.encoders.names, plan.scores.temperature)) for run in runs
        ]
    rows = [torch.stack([_measure(role, *each) for each in found]).mean(0) for role in plan.scorers]
    return ModalityScores(None, None, torch.stack(rows), samples, None, {})


def _measure(role: Role | None, task: TaskCalls, outputs: Sequence[Any], target: Any) -> Tensor:
    if role is None or role.score_kind == "loss":
        return -torch.stack(task.losses(outputs, target))
    return role.measure(task, outputs, target)


def _score_run(
    model: MultimodalModel, plan: Plan, task: TaskCalls, run: CapturedRun, target: Any, fit: bool
) -> tuple[Tensor, Tensor, ShapleyAttribution | None]:
    """Of one forward pass: the unimodal losses `[M]` with their graphs, the scores `[R, M]`, the responses."""
    losses, outputs = model.classifiers(run.features, task, target, masks=run.masks, fit=fit)
    reader = plan.reads("responses")
    attribution = None if reader is None else model.coalitions.attribute(reader.permutations, reader.zero)
    rows: list[Tensor] = []
    for role in plan.scorers:
        if role is None or role.score_kind == "loss":
            rows.append(-losses.detach())
            continue
        if role.score_source == "responses":
            compared = attribution.responses()
        elif role.score_source == "head":
            compared = model.head_split.split(run.captured)
        else:
            compared = [map_tensors(torch.Tensor.detach, output) for output in outputs]
        rows.append(role.measure(task, compared, target))
    return losses, rows[0][None] if len(rows) == 1 else torch.stack(rows), attribution
