"""The unimodal classifiers' losses on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .tasks import Task


class Evaluation(NamedTuple):
    """What the unimodal classifiers make of a batch."""

    total: Tensor  # sum of the M losses, 0-dimensional, with its graph
    losses: Tensor  # [M] float32, outside of autograd
    outputs: Sequence[Tensor] | Tensor  # M outputs


def evaluate(
    classifiers: Sequence[nn.Module], features: Sequence[Tensor], task: Task, target: Tensor
) -> Evaluation:
    """Run the classifiers on their features, and the task's loss on what they put out.

    Args:
        classifiers: M modules.
        features: M tensors.
        task: its loss trains the classifiers.
        target: in a form that the task knows.

    Raises:
        ValueError: a target that does not fit.
    """
    outputs = [_run(classifier, x) for classifier, x in zip(classifiers, features, strict=True)]
    losses = [task.loss(output, target).float() for output in outputs]
    with torch.no_grad():
        measured = torch.stack(losses)  # [M]
    return Evaluation(sum(losses[1:], losses[0]), measured, outputs)


def _run(classifier: nn.Module, features: Tensor) -> Tensor:
    if not torch.is_autocast_enabled(features.device.type):
        features = features.to(next((p.dtype for p in classifier.parameters()), features.dtype))
    return classifier(features)
