"""The unimodal classifiers' losses on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tasks import Task
from ..torch_private import first_parameter


class UnimodalEvaluation(NamedTuple):
    """The unimodal classifiers' losses and outputs on a batch."""

    total: Tensor  # sum of the M losses, 0-dimensional, with its graph
    losses: Tensor  # [M] float32, outside of autograd
    outputs: Sequence[Tensor]  # M outputs


def unimodal_losses(
    classifiers: Sequence[nn.Module],
    features: Sequence[Tensor],
    task: Task,
    target: Tensor,
    masks: Sequence[Tensor | None] | None = None,
) -> UnimodalEvaluation:
    """Run the classifiers on their features, and compute the task's loss for each output.

    Args:
        classifiers: M modules.
        features: M tensors.
        task: its loss trains the classifiers.
        target: in a form that the task accepts.
        masks: for each of M modalities, a mask of the positions that count, or None.

    Raises:
        ValueError: the target does not fit the task.
    """
    masks = masks or [None] * len(features)
    outputs = [_run(*each) for each in zip(classifiers, features, masks, strict=True)]
    losses = [task.loss(output, target).float() for output in outputs]
    with torch.no_grad():
        measured = torch.stack(losses)  # [M]
    return UnimodalEvaluation(sum(losses[1:], losses[0]), measured, outputs)


def _run(classifier: nn.Module, features: Tensor, mask: Tensor | None) -> Tensor:
    if not torch.is_autocast_enabled(features.device.type):
        first = first_parameter(classifier)
        features = features if first is None else features.to(first.dtype)
    return classifier(features) if mask is None else classifier(features, mask=mask)
