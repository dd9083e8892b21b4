"""Scores each modality by itself: the unimodal losses, and the scores that the policy's roles compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..policies.plan import Plan
from ..tasks import Task
from .coalitions import ShapleyAttribution
from .multimodal import CapturedRun, MultimodalModel


class ModalityScores(NamedTuple):
    """The modalities' losses and scores in a forward pass."""

    unimodal: Tensor  # the sum of the M unimodal losses, 0-dimensional, with its graph
    scores: Tensor  # [R, M] float32, a row for each role that reads scores; higher is better
    attribution: ShapleyAttribution | None  # the modalities' responses, where a role reads them
    diagnostics: Mapping[str, Tensor]  # further statistics, [M] each


def score_modalities(
    model: MultimodalModel, plan: Plan, task: Task, loss: Tensor, target: Tensor, *, fit: bool
) -> ModalityScores:
    """Run the unimodal classifiers on the features of the forward pass just made, and score the modalities.

    A loss of several forward passes, as in siamese training, has the mean over them of losses and scores.

    Args:
        model: holds those features and the classifiers.
        plan: whether the features are detached, and which roles read which scores.
        task: its loss trains the classifiers.
        loss: the multimodal loss, which tells the passes that it comes from.
        target: in a form that the task knows.
        fit: as in `UnimodalClassifiers`.

    Raises:
        RuntimeError: no forward pass since the last one that was scored.
        ValueError: a target that does not fit.
    """
    runs = model.read_features(loss, target, plan.detaches_features)
    scored = [_score_run(model, plan, task, run, target, fit) for run in runs]
    unimodal, losses, rows, attribution = scored[0]
    if len(runs) > 1:
        unimodal = torch.stack([each[0] for each in scored]).mean()
        losses = torch.stack([each[1] for each in scored]).mean(0)
        rows = list(torch.stack([torch.stack(each[2]) for each in scored]).mean(0))
    diagnostics = {} if plan.coefficients is None else plan.coefficients.diagnostics(rows[0], losses)
    scores = rows[0][None] if len(rows) == 1 else torch.stack(rows)
    return ModalityScores(unimodal, scores, attribution, diagnostics)


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
