"""A policy combines up to four roles, each a small class with one job.

`Coefficients` scale the encoders' gradients or updates, a `Combiner` merges the multimodal and the unimodal gradient, a
`Dropout` removes modalities before the fusion, and an `Objective` adds a loss. `+` combines roles into a policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cggm.tasks.calls import TaskCalls

if TYPE_CHECKING:
    from cggm.tasks import Task

ScaleTarget = Literal["feature", "gradient", "update", "response"]
ScoreSource = Literal["classifiers", "head", "responses"]
State = dict[str, Tensor]


class CoefficientUpdate(NamedTuple):
    """The result of a coefficient role for the scores of one step."""

    coefficients: Tensor  # [M], multiply each encoder's gradient or update
    weights: Tensor  # [M], the coefficients without the overall factor ρ; they weight the head's direction
    state: State  # the role's new state, kept only if the step is taken
    unimodal_weights: Tensor | None = None  # [M], multiply each unimodal gradient inside the combiner


@dataclass(frozen=True, kw_only=True)
class Role:
    """One job of a policy: pure arithmetic on small tensors, without models, kernels or host synchronization.

    A role is immutable. Its memory is a `State` that the optimizer wrapper holds, commits after each completed step,
    and saves in checkpoints.
    """

    #: The name of the job.
    slot: ClassVar[str]
    #: Other jobs that cannot be combined with this role.
    excludes: ClassVar[tuple[str, ...]] = ()
    #: Whose outputs are scored: the unimodal classifiers', each modality's share of the head's output, or its
    #: Shapley response over forward passes without some modalities.
    score_source: ClassVar[ScoreSource] = "classifiers"
    #: Which score: the negative unimodal loss, or what `measure` makes of those outputs, by default the task's score
    #: ("metric") or the mean confidence in the truth ("confidence").
    score_kind: ClassVar[Literal["loss", "metric", "confidence"]] = "loss"

    def __add__(self, other: Role | Policy) -> Policy:
        """Combine this role with another role, or with all roles of a policy.

        Raises:
            ValueError: two roles have the same job.
        """
        return Policy.of(self) + other

    def measure(self, task: Task, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Scores `[M]` of M detached outputs; called unless `score_kind` is `"loss"`.

        `TaskCalls.of(task)` calls the task's functions with all arguments that they ask for.
        """
        calls = TaskCalls.of(task)
        if self.score_kind == "confidence":
            return torch.stack(calls.confidences(outputs, target))
        return torch.stack([score.float() for score in calls.scores(outputs, target)])

    def initial_state(self, scores: Tensor) -> State:
        """The state before the first step, on the device of `scores` `[M]`."""
        return {}


@dataclass(frozen=True)
class Policy:
    """Up to four roles that work together, usually built with `+`. A policy without roles is plain joint training.

    A coefficient multiplies the output of the combiner. With `UnimodalLosses() + CGGM()`, that is the sum of the
    multimodal and the unimodal gradient.

    Args:
        coefficients: scales the encoders' gradients or updates; None for 1.
        combiner: combines the multimodal and the unimodal gradient; None keeps unimodal gradients out of the encoders.
        dropout: drops modalities before the fusion.
        objective: adds a loss.

    Raises:
        ValueError: two of the roles cannot be combined.

    >>> from cggm.policies import CGGM, ModalityDropout, UnimodalLosses
    >>> policy = UnimodalLosses() + ModalityDropout(0.35)
    >>> policy.combiner, policy.dropout, policy.coefficients
    (UnimodalLosses(weight=1.0), ModalityDropout(p=0.35, fill=0.0), None)
    """

    coefficients: Role | None = None
    combiner: Role | None = None
    dropout: Role | None = None
    objective: Role | None = None

    def __init_subclass__(cls) -> None:
        raise TypeError(
            "Policy is a composition of roles: subclass cggm.policies.Coefficients (balance), Combiner (combine), "
            "Dropout (rates) or Objective (term), and add roles up with +"
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            role = getattr(self, field.name)
            if (role is not None and getattr(role, "slot", None) != field.name) or isinstance(role, type):
                raise TypeError(
                    f"{field.name} must be a role of that slot or None (add roles up with +, as in UnimodalLosses() + "
                    f"CGGM()), got {role!r}"
                )
        for role in self.roles:
            for slot in role.excludes:
                if getattr(self, slot) is not None:
                    raise _clash(role, getattr(self, slot), slot)

    @classmethod
    def of(cls, policy: Policy | Role) -> Policy:
        """Turn a single role into a policy; return a policy unchanged.

        Raises:
            TypeError: `policy` is neither a role nor a policy.
        """
        if isinstance(policy, Policy):
            return policy
        if isinstance(policy, Role):
            return cls(**{policy.slot: policy})
        raise TypeError(f"policy must be a cggm Policy or role such as CGGM(), got {type(policy).__name__}")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that are not None."""
        filled = (getattr(self, field.name) for field in fields(self))
        return tuple(role for role in filled if role is not None)

    def __add__(self, other: Policy | Role) -> Policy:
        """Combine this policy with a role, or with the roles of another policy.

        Raises:
            ValueError: two roles have the same job.
        """
        if not isinstance(other, (Policy, Role)):
            return NotImplemented
        filled: dict[str, Any] = {role.slot: role for role in self.roles}
        for role in Policy.of(other).roles:
            if role.slot in filled:
                raise _clash(filled[role.slot], role, role.slot)
            filled[role.slot] = role
        return Policy(**filled)


def _clash(one: Role, other: Role, slot: str) -> ValueError:
    weighted = slot == "combiner" and hasattr(one, "weight") and hasattr(other, "weight")
    hint = ", and give it the weight of the unimodal losses, as DGL(weight=4)" if weighted else ""
    return ValueError(
        f"policy: {type(one).__name__} and {type(other).__name__} both act in the same place ({slot}) and cannot be "
        f"added up; keep one of them{hint}"
    )


def all_finite(scores: Tensor) -> Tensor:
    """Whether all scores `[M]` are finite, as a 0-dimensional bool; it takes fewer kernel launches than `isfinite`.

    >>> all_finite(torch.tensor([1.0, -2.0])), all_finite(torch.tensor([1.0, float("inf")]))
    (tensor(True), tensor(False))
    """
    return torch.linalg.vector_norm(scores, math.inf) < math.inf  # the largest; NaN < inf is False


def each_finite(scores: Tensor) -> Tensor:
    """Which scores are finite, bool in their shape; fewer kernel launches than `isfinite`.

    >>> each_finite(torch.tensor([1.0, float("inf"), float("nan")]))
    tensor([ True, False, False])
    """
    return (scores - scores) == 0


def mean_of_others(scores: Tensor, finite: Tensor) -> Tensor:
    """For each modality, the mean `[M]` of the other modalities' finite scores; NaN if there are none.

    Args:
        scores: `[M]`.
        finite: `[M]`, as `each_finite` returns it.

    >>> scores = torch.tensor([0.5, float("nan"), 0.3])
    >>> mean_of_others(scores, each_finite(scores))
    tensor([0.3000, 0.4000, 0.5000])
    """
    counted = scores.masked_fill(~finite, 0)
    return (counted.sum() - counted) / (finite.sum() - finite.to(scores.dtype))
