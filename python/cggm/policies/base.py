"""What every balancing method has to say: its scores, its coefficients, and what happens at the junction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cggm.tasks import Task

    from .composition import Composition

Application = Literal["feature", "gradient", "update", "response"]
Place = Literal["coefficients", "junction", "dropout"]
State = dict[str, Tensor]


class Balance(NamedTuple):
    """What a policy makes of the scores of one step."""

    coefficients: Tensor  # [M], what multiplies each encoder's gradient or update
    weights: Tensor  # [M], the same without the overall factor ρ: weighs the direction term
    state: State  # what the policy remembers if the step is really taken


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all methods: pure arithmetic on small tensors, without models, kernels or host synchronisation.

    A policy is immutable; what it remembers lives in a `State` that the optimizer wrapper carries, commits
    after a step that was really taken, and saves in checkpoints. Subclasses override what differs from plain
    joint training. Policies that take different places compose: `UnimodalLosses() + ModalityDropout(p=0.35)`.
    """

    #: Where the policy acts; two policies that take the same place cannot be composed. `coefficients` multiply
    #: an encoder's gradient or update; `junction` is the rule by which the gradients of the two losses meet.
    places: ClassVar[tuple[Place, ...]] = ("coefficients",)
    #: Whether the unimodal classifiers see detached features, so that their losses do not reach the encoders.
    detach_features: ClassVar[bool] = True
    #: Whether the two gradients meet at the encoder's output (`meet`) or at its parameters (`weigh`).
    meets_at: ClassVar[Literal["features", "parameters"]] = "features"

    #: Whose outputs are compared: the unimodal classifiers', each modality's share of what the head puts out,
    #: or its Shapley response over masked forward passes.
    reads: ClassVar[Literal["classifiers", "head", "responses"]] = "classifiers"
    #: Orders that are sampled for those responses beyond 4 modalities.
    permutations: ClassVar[int] = 4
    #: Which score: the negative unimodal loss, or what `measure` makes of those outputs.
    score: ClassVar[Literal["loss", "metric"]] = "loss"
    #: Strength λ of the direction term, and how it turns the head's gradient.
    lam: ClassVar[float] = 0.0
    direction: ClassVar[Literal["rotation", "gradient", "weights", "none"]] = "none"
    #: Probability that a sample loses one modality before the fusion.
    dropout: ClassVar[float] = 0.0
    #: Whether Gaussian noise of each gradient's own standard deviation is added to the encoders' gradients.
    noise: ClassVar[bool] = False

    def __add__(self, other: Policy) -> Composition:
        """This policy and another one that acts elsewhere, both at work.

        Raises:
            ValueError: both act in the same place.
        """
        from .composition import compose

        return compose(self, other) if isinstance(other, Policy) else NotImplemented

    def applications(self, adaptive: bool) -> tuple[Application, ...]:
        """Where this policy can act, the choice of `apply="auto"` first.

        Args:
            adaptive: True if the wrapped optimizer divides updates by the gradient's own scale (Adam and kin).
        """
        return ("feature",)

    def measure(self, task: Task, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Scores `[M]` of M outputs (detached), where `score` is `"metric"`: by default the task's own."""
        return torch.stack([task.score(output, target).float() for output in outputs])

    def initial_state(self, scores: Tensor) -> State:
        """The state before the first step, on the device of `scores` `[M]`."""
        return {}

    def balance(self, scores: Tensor, state: State) -> Balance:
        """Coefficients of this step from the scores `[M]` (float32, higher is better) and the state; by default 1.

        Nothing is mutated: the new state is returned, so that a skipped step can drop it.
        """
        ones = torch.ones_like(scores)
        return Balance(ones, ones, state)

    def meet(self, multimodal: Tensor, unimodal: Tensor | None) -> Tensor:
        """The gradient that enters an encoder at its output, before its coefficient; by default the plain sum.

        Args:
            multimodal: gradient of the multimodal loss there, the features' shape.
            unimodal: gradient of the unimodal loss there, or None where the classifier saw detached features.
        """
        return multimodal if unimodal is None else multimodal + unimodal

    @property
    def adds(self) -> bool:
        """Whether `meet` is the plain sum, which autograd takes by itself; a subclass with another rule says False."""
        return getattr(self.meet, "__func__", None) is Policy.meet

    def weigh(self, gram: Tensor) -> Tensor:
        """Weights `[S, M, 2]` of the multimodal and the unimodal gradient of each of M encoders' S tensors.

        Args:
            gram: `[S, M, 2, 2]` float64, the two gradients' dot products, tensor by tensor; zeros where an encoder has
                fewer tensors.
        """
        raise NotImplementedError

    def figures(self, scores: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Further statistics `[M]` of a step, from its scores `[M]` and its unimodal losses `[M]`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Joint(Policy):
    """Plain joint training: nothing is balanced; the unimodal classifiers learn and tell their scores.

    >>> Joint().balance(torch.tensor([-1.0, -2.0]), {}).coefficients
    tensor([1., 1.])
    """

    places: ClassVar[tuple[Place, ...]] = ()


def all_finite(scores: Tensor) -> Tensor:
    """Whether none of the scores `[M]` is infinite or NaN, 0-dimensional bool; in fewer launches than `isfinite`.

    >>> all_finite(torch.tensor([1.0, -2.0])), all_finite(torch.tensor([1.0, float("inf")]))
    (tensor(True), tensor(False))
    """
    return torch.linalg.vector_norm(scores, math.inf) < math.inf  # the largest; NaN is not below infinity


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Raise unless `low <= value <= high`; `name` is how the user calls the argument.

    >>> check_range("rho", -1.0, 0.0)
    Traceback (most recent call last):
    ValueError: rho must be a number in [0, inf], got -1.0
    """
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
