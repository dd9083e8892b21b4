"""The loss that `backward()` runs on: the multimodal loss plus the terms that balancing adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.multimodal import MultimodalModel
from ..model.scoring import ModalityScores
from . import direction
from .step_state import StepState


def check_loss(loss: Tensor) -> None:
    """Reject a multimodal loss that `backward()` cannot run on.

    Raises:
        RuntimeError: the loss has no graph, or gradients are disabled.
        TypeError: the loss is not a tensor.
        ValueError: the loss is not 0-dimensional.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss must be a tensor, the multimodal loss with its graph, got {type(loss).__name__}"
        )
    if not torch.is_grad_enabled() or loss.grad_fn is None:
        raise RuntimeError(
            "balance() needs a loss with a graph: call it outside torch.no_grad(), before backward()"
        )
    if loss.ndim or loss.is_complex():
        raise ValueError(
            f"loss must be 0-dimensional, as its mean over the batch, and real, got {list(loss.shape)} of {loss.dtype}"
        )


def total_loss(
    model: MultimodalModel, state: StepState, loss: Tensor, scores: ModalityScores, target: Any
) -> Tensor:
    """The sum of the multimodal loss, the unimodal losses, and the terms that the policy adds.

    Args:
        model: provides the head, the fusion and the classifiers.
        state: provides the plan, this step's coefficients, and the policy's state after the last step.
        loss: the multimodal loss, 0-dimensional.
        scores: the scores from the same forward pass.
        target: the batch's target.
    """
    plan, update = state.plan, state.update
    if plan.policy.objective is not None:
        loss = loss + plan.policy.objective.term(model.coalitions, loss, target)
    total = loss.view_as(loss) if scores.unimodal is None else loss + scores.unimodal
    term = direction.loss_term(plan.direction, model, (loss, scores.unimodal), update.weights, state.state)
    total = total if term is None else total + term
    if scores.attribution is not None:
        total = total + scores.attribution.term(loss, update.coefficients)
    return total
