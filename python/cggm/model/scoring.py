"""How well each modality does by itself: the unimodal losses, and the scores that a policy compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..optim import direction
from ..policies.base import Balance, Policy, State
from ..tasks import Task
from .coalitions import Attribution
from .multimodal import MultimodalModel


class Assessment(NamedTuple):
    """What a forward pass tells about the modalities."""

    unimodal: Tensor  # the sum of the M unimodal losses, 0-dimensional, with its graph
    scores: Tensor  # [M] float32, higher is better
    attribution: Attribution | None  # the modalities' responses, where the policy reads them
    figures: Mapping[str, Tensor]  # further statistics, [M] each

    def total(
        self, policy: Policy, model: MultimodalModel, loss: Tensor, balance: Balance, state: State
    ) -> Tensor:
        """The multimodal loss with what balancing adds: the unimodal losses, and terms for gradients alone.

        Args:
            policy: says which terms.
            model: its head, and the classifiers.
            loss: the multimodal loss, 0-dimensional.
            balance: this step's.
            state: the policy's, as of the last step taken.
        """
        total = loss + self.unimodal
        turning = direction.loss_term(policy, model, (loss, self.unimodal), balance.weights, state)
        total = total if turning is None else total + turning
        if self.attribution is not None:
            total = total + self.attribution.term(loss, balance.coefficients)
        return total


def check_loss(loss: Tensor) -> None:
    """Refuse a multimodal loss from which nothing can go backward.

    Raises:
        RuntimeError: it has no graph, or gradients are disabled.
        ValueError: it is not 0-dimensional.
    """
    if not torch.is_grad_enabled() or not loss.requires_grad:
        raise RuntimeError(
            "balance() needs a loss with a graph: call it outside torch.no_grad(), before backward()"
        )
    if loss.ndim:
        raise ValueError(f"loss must be 0-dimensional, as its mean over the batch, got {list(loss.shape)}")


def assess(model: MultimodalModel, policy: Policy, task: Task, target: Tensor, *, fit: bool) -> Assessment:
    """Run the unimodal classifiers on the features of the forward pass just made, and score the modalities.

    Args:
        model: holds those features and the classifiers.
        policy: whether the features are detached, what is scored and how.
        task: its loss trains the classifiers.
        target: in a form that the task knows.
        fit: as in `UnimodalClassifiers`.

    Raises:
        RuntimeError: no forward pass since the last one assessed.
        ValueError: a target that does not fit.
    """
    features = model.modalities.features()
    if policy.detach_features:
        features = [x.detach() for x in features]
    unimodal, losses, outputs = model.classifiers(features, task, target, fit=fit)
    attribution = model.attribute(policy)
    scores = -losses
    if policy.score == "metric":
        scores = policy.measure(task, model.compared(policy, outputs, features, attribution), target)
    return Assessment(unimodal, scores, attribution, policy.figures(scores, losses))
