"""The four roles of a policy. Subclass one to write your own method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .base import CoefficientUpdate, Role, ScaleTarget, State


class Coefficients(Role):
    """Computes one coefficient per modality from the scores, as CGGM does. Subclass it and implement `balance`."""

    slot = "coefficients"
    #: Strength λ of the head direction, and its kind.
    lam: ClassVar[float] = 0.0
    direction: ClassVar[Literal["rotation", "gradient", "weights", "none"]] = "none"
    #: Whether Gaussian noise of each gradient's own standard deviation is added to the encoders' gradients.
    noise: ClassVar[bool] = False
    #: Whether scores are compared with those of the step before. In a step without new ones, all scores are NaN, and
    #: `balance` must leave coefficients and state as they were.
    compares_steps: ClassVar[bool] = False
    #: Whether `balance` returns `unimodal_weights`.
    weighs_unimodal: ClassVar[bool] = False

    @property
    def turns_head(self) -> bool:
        """Whether the head's gradient is turned towards those of the unimodal classifiers."""
        return self.lam > 0 and self.direction != "none"

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Compute this step's coefficients from the scores `[M]` (from `measure`, higher is better) and the state.

        Do not mutate anything. Return the new state instead, so that a skipped step can discard it.
        """
        raise NotImplementedError

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """What the coefficients can scale; `apply="auto"` takes the first.

        Args:
            adaptive: True if the wrapped optimizer divides updates by the gradient's own scale, as Adam does. That
                cancels a constant coefficient on the gradient, so `"update"` comes first.
        """
        return ("update", "gradient", "feature") if adaptive else ("feature", "gradient", "update")

    def diagnostics(self, scores: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Additional statistics `[M]` of a step, from its scores `[M]` and its unimodal losses `[M]`."""
        return {}


class Combiner(Role):
    """Merges the multimodal and the unimodal gradient, as MMPareto does. Subclass it and implement `combine`."""

    slot = "combiner"
    #: Where the two gradients are combined: at the encoder's output by `combine`, or at its parameters with
    #: `combination_weights`.
    combine_at: ClassVar[Literal["features", "parameters"]] = "features"
    #: Whether `limit` bounds the steps of an optimizer that is linear in the gradient.
    bounded: ClassVar[bool] = False

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """The gradient that enters an encoder at its output, before its coefficient.

        To support coefficient roles that weight the unimodal gradient, accept a third argument `weight`, a
        0-dimensional tensor.

        Args:
            multimodal: gradient of the multimodal loss at the encoder's output, in the features' shape.
            unimodal: gradient of the unimodal loss at the encoder's output, in the same shape.
        """
        raise NotImplementedError

    def limit(self, joint: Tensor, state: State) -> tuple[Tensor, State]:
        """The largest allowed norm of the model's gradient in this step, and the new state; called if `bounded`.

        Args:
            joint: 0-dimensional float64, the gradient norm of plain joint training at these weights.
            state: the state from `initial_state` or from the last step.
        """
        return joint, state

    def combination_weights(self, gram: Tensor) -> Tensor:
        """Weights `[S, M, 2]` of the multimodal and the unimodal gradient, for each of S tensors of M encoders.

        Args:
            gram: `[S, M, 2, 2]` float64, dot products of the two gradients for each tensor; padded with zeros if an
                encoder has fewer tensors.
        """
        raise NotImplementedError


class Dropout(Role):
    """Decides how often each modality is dropped before the fusion. Subclass it and implement `rates`."""

    slot = "dropout"
    #: Whether `update` computes new rates after each step.
    adaptive: ClassVar[bool] = False
    #: What stands in for dropped features.
    fill: ClassVar[float] = 0.0

    def rates(self, modalities: int) -> tuple[float, ...]:
        """For each of the M modalities, the probability that a sample loses it; the sum is at most 1."""
        raise NotImplementedError

    def initial_state(self, scores: Tensor) -> State:
        """`rates(M)` as `state["rates"]` if `adaptive`, otherwise an empty state."""
        rates = self.rates(scores.numel())
        return (
            {"rates": torch.tensor(rates, dtype=torch.float32, device=scores.device)} if self.adaptive else {}
        )

    def update(self, scores: Tensor, state: State) -> State:
        """The state after a step with these scores `[M]`; called if `adaptive`.

        `state["rates"]`, float32 `[M]`, holds this step's rates. The returned state holds the next step's rates, which
        must not add up to more than 1.
        """
        raise NotImplementedError


class Fusion(Protocol):
    """An objective's view of a forward pass; calling it runs the fusion again."""

    features: Sequence[Tensor]  # features of the M encoders, with their graphs
    output: Tensor  # the head's output for them, with its graph

    def __call__(self, features: Sequence[Tensor]) -> Tensor:
        """The head's output for other features, with its graph."""
        ...


class Objective(Role):
    """Adds a loss to the multimodal loss, as TCMax does. Subclass it and implement `term`."""

    slot = "objective"
    #: Its gradient enters an encoder at the same place as the unimodal gradient; a combiner cannot tell them apart.
    excludes: ClassVar[tuple[str, ...]] = ("combiner",)

    def term(self, fusion: Fusion, loss: Tensor, target: Tensor) -> Tensor:
        """The loss to add, 0-dimensional, with its graph.

        Args:
            fusion: the latest forward pass.
            loss: the multimodal loss, 0-dimensional.
            target: the batch's target.
        """
        raise NotImplementedError
