"""What every balancing method has to say: its scores, its coefficients, and what happens at the junction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

Application = Literal["feature", "gradient", "update"]
State = dict[str, Tensor]


class Balance(NamedTuple):
    """What a policy makes of the scores of one step."""

    coefficients: Tensor  # [M], what multiplies each encoder's gradient or update
    weights: Tensor  # [M], the same without the overall factor ρ: weighs the direction term
    state: State  # what the policy remembers if the step is really taken


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all methods: pure arithmetic on `[M]` tensors, without models, kernels or host synchronisation.

    A policy is immutable; what it remembers lives in a `State` that the optimizer wrapper carries, commits
    after a step that was really taken, and saves in checkpoints. Subclasses override what differs from plain
    joint training.
    """

    #: Whether the unimodal classifiers see detached features, so that their losses do not reach the encoders.
    detach_features: ClassVar[bool] = True

    #: Which score the policy compares: the negative unimodal loss, or the task's metric.
    score: ClassVar[Literal["loss", "metric"]] = "loss"
    #: Strength λ of the direction term, and how it turns the head's gradient.
    lam: ClassVar[float] = 0.0
    direction: ClassVar[Literal["rotation", "gradient", "weights", "none"]] = "none"

    def applications(self, adaptive: bool) -> tuple[Application, ...]:
        """Where this policy can act, the choice of `apply="auto"` first.

        Args:
            adaptive: True if the wrapped optimizer divides updates by the gradient's own scale (Adam and kin).
        """
        raise NotImplementedError

    def initial_state(self, scores: Tensor) -> State:
        """The state before the first step, on the device of `scores` `[M]`."""
        return {}

    def balance(self, scores: Tensor, state: State) -> Balance:
        """Coefficients of this step from the scores `[M]` (float32, higher is better) and the state.

        Nothing is mutated: the new state is returned, so that a skipped step can drop it.
        """
        raise NotImplementedError

    def meet(self, multimodal: Tensor, unimodal: Tensor | None, coefficient: Tensor) -> Tensor:
        """The gradient that enters an encoder at its output.

        Args:
            multimodal: gradient of the multimodal loss there, the features' shape.
            unimodal: gradient of the unimodal loss there, or None where the classifier saw detached features.
            coefficient: this modality's coefficient, 0-dimensional.
        """
        return multimodal * coefficient.to(multimodal.dtype)


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Raise unless `low <= value <= high`; `name` is how the user calls the argument.

    >>> check_range("rho", -1.0, 0.0)
    Traceback (most recent call last):
    ValueError: rho must be a number in [0, inf], got -1.0
    """
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
