"""The four roles of a policy: subclass one to write a method of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .base import CoefficientUpdate, Role, ScaleTarget, State

if TYPE_CHECKING:
    pass


class Coefficients(Role):
    """Makes a coefficient per modality of the scores, as CGGM does: subclass it and write `balance`."""

    slot = "coefficients"
    #: Strength λ of the head's direction, and how it turns the head's gradient.
    lam: ClassVar[float] = 0.0
    direction: ClassVar[Literal["rotation", "gradient", "weights", "none"]] = "none"
    #: Whether Gaussian noise of each gradient's own standard deviation is added to the encoders' gradients.
    noise: ClassVar[bool] = False
    #: Whether `balance` returns `unimodal_weights`.
    weighs_unimodal: ClassVar[bool] = False

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Coefficients of this step from the scores `[M]` (as `measure` makes them, higher is better) and the state.

        Nothing is mutated: the new state is returned, so that a skipped step can drop it.
        """
        raise NotImplementedError

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """What the coefficients can scale, the choice of `apply="auto"` first.

        Args:
            adaptive: True if the wrapped optimizer divides updates by the gradient's own scale, as Adam does. It
                undoes a constant coefficient on the gradient, so that `"update"` comes first.
        """
        return ("update", "gradient", "feature") if adaptive else ("feature", "gradient", "update")

    def diagnostics(self, scores: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Further statistics `[M]` of a step, from its scores `[M]` and its unimodal losses `[M]`."""
        return {}


class Combiner(Role):
    """Makes one gradient of the multimodal and the unimodal one, as MMPareto does: subclass it, write `combine`."""

    slot = "combiner"
    #: Where the two gradients are combined: at the encoder's output by `combine`, or at its parameters with
    #: `combination_weights`.
    combine_at: ClassVar[Literal["features", "parameters"]] = "features"
    #: Whether `limit` bounds the steps of an optimizer that is linear in the gradient.
    bounded: ClassVar[bool] = False

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """The gradient that enters an encoder at its output, before its coefficient.

        A combiner that takes a third argument, a 0-dimensional `weight` of the unimodal gradient, works with
        coefficients that weigh the unimodal gradient.

        Args:
            multimodal: gradient of the multimodal loss there, the features' shape.
            unimodal: gradient of the unimodal loss there, the same shape.
        """
        raise NotImplementedError

    def limit(self, joint: Tensor, state: State) -> tuple[Tensor, State]:
        """The norm that the model's gradient may have in this step, and the new state; asked where `bounded`.

        Args:
            joint: 0-dimensional float64, the norm that joint training's own gradient has at these weights.
            state: as `initial_state` made it, or the last step returned it.
        """
        return joint, state

    def combination_weights(self, gram: Tensor) -> Tensor:
        """Weights `[S, M, 2]` of the multimodal and the unimodal gradient of each of M encoders' S tensors.

        Args:
            gram: `[S, M, 2, 2]` float64, the two gradients' dot products, tensor by tensor; zeros where an encoder has
                fewer tensors.
        """
        raise NotImplementedError


class Dropout(Role):
    """Says how often each modality is dropped before the fusion: subclass it and write `rates`."""

    slot = "dropout"
    #: Whether `update` makes new rates after each step.
    adaptive: ClassVar[bool] = False
    #: What stands in for dropped features.
    fill: ClassVar[float] = 0.0

    def rates(self, modalities: int) -> tuple[float, ...]:
        """The probability that a sample loses modality i, for all M; never more than 1 together."""
        raise NotImplementedError

    def initial_state(self, scores: Tensor) -> State:
        """`rates(M)` as `state["rates"]` where `adaptive`, else nothing."""
        rates = self.rates(scores.numel())
        return (
            {"rates": torch.tensor(rates, dtype=torch.float32, device=scores.device)} if self.adaptive else {}
        )

    def update(self, scores: Tensor, state: State) -> State:
        """The state after a step with these scores `[M]`; asked where `adaptive`.

        `state["rates"]`, float32 `[M]`, are the rates: those of this step in the argument, of the next one in what
        is returned. They must not add up to more than 1.
        """
        raise NotImplementedError


class Fusion(Protocol):
    """What an objective sees of a forward pass, and a way to run its fusion again."""

    features: Sequence[Tensor]  # M encoders' features, with their graphs
    output: Tensor  # what the head made of them, with its graph

    def __call__(self, features: Sequence[Tensor]) -> Tensor:
        """What the head makes of other features, with its graph."""
        ...


class Objective(Role):
    """Adds a loss to the multimodal one, as TCMax does: subclass it and write `term`."""

    slot = "objective"
    #: Its gradient enters an encoder where the unimodal one does; a combiner would take it for that.
    excludes: ClassVar[tuple[str, ...]] = ("combiner",)

    def term(self, fusion: Fusion, loss: Tensor, target: Tensor) -> Tensor:
        """The loss to add, 0-dimensional, with its graph.

        Args:
            fusion: the forward pass just made.
            loss: the multimodal loss, 0-dimensional.
            target: the batch's target.
        """
        raise NotImplementedError
