"""The unimodal classifiers' losses on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..tasks import Task
from ..tasks.calls import TaskCalls
from ..torch_private import first_parameter


class UnimodalEvaluation(NamedTuple):
    """The unimodal classifiers' losses and outputs on a batch."""

    losses: Tensor  # [M] float32, with their graphs
    outputs: Sequence[Any]  # M outputs; None where there are no features


def unimodal_losses(
    classifiers: Sequence[nn.Module],
    features: Sequence[Tensor | None],
    task: Task | TaskCalls,
    target: Any,
    masks: Sequence[Tensor | None] | None = None,
) -> UnimodalEvaluation:
    """Run the classifiers on their features, and compute the task's loss for each output.

    Args:
        classifiers: M modules.
        features: M tensors; None if the encoder did not run, whose loss is then NaN.
        task: its loss trains the classifiers.
        target: in a form that the task accepts.
        masks: for each of M modalities, a mask of the positions that count, or None.

    Raises:
        ValueError: the target does not fit the task.
    """
    masks = masks or [None] * len(features)
    outputs = [_run(*each) for each in zip(classifiers, features, masks, strict=True)]
    losses = torch.stack(TaskCalls.of(task).losses(outputs, target))  # [M]
    return UnimodalEvaluation(losses, outputs)


def _run(classifier: nn.Module, features: Tensor | None, mask: Tensor | None) -> Any:
    if features is None:
        return None
    if not torch.is_autocast_enabled(features.device.type):
        first = first_parameter(classifier)
        features = features if first is None else features.to(first.dtype)
    return classifier(features) if mask is None else classifier(features, mask=mask)
