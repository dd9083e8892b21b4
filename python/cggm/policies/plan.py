"""The plan: how a policy acts with a given optimizer and set of processes. The constructor resolves it once.

This module rejects everything that cannot work together. Each part of the wrapper reads from the plan what it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from .adaptive import is_adaptive
from .base import Policy, Role, ScaleTarget
from .roles import Coefficients, Combiner, Dropout
from .scores import CLASSIFIERS, MaskedScores, Scores, check_scores
from .unimodal import UnimodalLosses


@dataclass(frozen=True)
class HeadDirection:
    """The kind of head direction, and its strength λ."""

    kind: Literal["rotation", "gradient", "weights"]
    lam: float


@dataclass(frozen=True)
class Plan:
    """A policy resolved for one optimizer, read by all parts of the wrapper.

    Args:
        policy: provides the roles.
        scale_at: what the coefficients scale; None without coefficients.
        direction: how to turn the head's gradient; None for no turn.
        bounds_step: whether the combiner limits the gradient norm to joint training's.
        scores: where the scores come from.
    """

    policy: Policy
    scale_at: ScaleTarget | None
    direction: HeadDirection | None
    bounds_step: bool = False
    scores: Scores = CLASSIFIERS

    @property
    def coefficients(self) -> Coefficients | None:
        """The policy's coefficients."""
        return self.policy.coefficients  # type: ignore[return-value]

    @property
    def combiner(self) -> Combiner | None:
        """The policy's combiner."""
        return self.policy.combiner  # type: ignore[return-value]

    @property
    def dropout(self) -> Dropout | None:
        """The role that drops modalities; None if its rates are always 0."""
        dropout = self.policy.dropout
        return None if dropout is None or not (dropout.adaptive or any(dropout.rates(2))) else dropout

    @property
    def detaches_features(self) -> bool:
        """Whether the unimodal classifiers see detached features, which keeps their losses out of the encoders."""
        return self.combiner is None

    @property
    def combines_at_parameters(self) -> bool:
        """Whether the two gradients are combined at the encoders' parameters instead of their outputs."""
        return self.combiner is not None and self.combiner.combine_at == "parameters"

    @property
    def adds_gradients(self) -> bool:
        """Whether combining is plain addition, which autograd already does."""
        return (
            type(self.combiner) is UnimodalLosses and self.combiner.weight == 1 and not self.weighs_unimodal
        )

    @property
    def weighs_unimodal(self) -> bool:
        """Whether the coefficient role also returns weights for the unimodal gradients."""
        return self.coefficients is not None and self.coefficients.weighs_unimodal

    @property
    def adds_noise(self) -> bool:
        """Whether noise is added to the encoders' gradients."""
        return self.coefficients is not None and self.coefficients.noise

    @property
    def scorers(self) -> tuple[Role | None, ...]:
        """The roles that read scores; `(None,)`, meaning the negative unimodal losses, if no role does."""
        found: list[Role | None] = [] if self.coefficients is None else [self.coefficients]
        if self.dropout is not None and self.dropout.adaptive:
            found.append(self.dropout)
        return tuple(found) or (None,)

    def reads(self, source: str) -> Any:
        """The first role that scores outputs of this source, or None."""
        return next((role for role in self.scorers if role is not None and role.score_source == source), None)

    def paused(self) -> Plan:
        """The plan while balancing is paused: everything stays attached, but nothing acts."""
        return Plan(Policy(), None, None, scores=self.scores)


def make_plan(
    policy: Policy | Role,
    apply: str,
    optimizer: Optimizer,
    scores: Scores = CLASSIFIERS,
) -> Plan:
    """Resolve a policy for an optimizer.

    Args:
        policy: the user's policy or role.
        apply: what the coefficients scale, or `"auto"` for the policy's choice with this optimizer.
        optimizer: the wrapped optimizer.
        scores: where the scores come from.

    Raises:
        TypeError: `policy` is not a policy.
        ValueError: the policy cannot scale this target or use these scores, or the combiner takes no weights.
    """
    policy = Policy.of(policy)
    check_scores(policy, scores)
    adaptive = is_adaptive(optimizer)
    choices = scale_targets(policy, adaptive)
    names = " + ".join(type(role).__name__ for role in policy.roles) or "Policy"
    if policy.coefficients is not None and policy.coefficients.weighs_unimodal:
        _check_takes_weight(policy, names)
    if apply != "auto" and apply not in choices:
        hint = "" if policy.coefficients else ": it has no coefficients to apply, CGGM() for one has"
        raise ValueError(f"apply must be 'auto' or one of {choices} with {names}, got {apply!r}{hint}")
    chosen = None
    direction = None
    if policy.coefficients is not None:
        chosen = choices[0] if apply == "auto" else apply
        if policy.coefficients.turns_head:
            direction = HeadDirection(policy.coefficients.direction, policy.coefficients.lam)
    bounds = policy.combiner is not None and policy.combiner.bounded and not adaptive
    return Plan(policy, chosen, direction, bounds, scores)  # type: ignore[arg-type]


def scale_targets(policy: Policy | Role, adaptive: bool) -> tuple[ScaleTarget, ...]:
    """What a policy's coefficients can scale; `apply="auto"` takes the first.

    `"feature"` is excluded if the gradients are combined at the parameters. A policy without coefficients accepts
    `"feature"`, which then does nothing.

    Args:
        policy: a policy or a single role.
        adaptive: True if the wrapped optimizer divides updates by the gradient's own scale.

    >>> from cggm.policies import CGGM, MMPareto
    >>> scale_targets(CGGM(), adaptive=False), scale_targets(MMPareto() + CGGM(), adaptive=False)
    (('feature', 'gradient', 'update'), ('gradient', 'update'))
    """
    policy = Policy.of(policy)
    if policy.coefficients is None:
        return ("feature",)
    choices = policy.coefficients.scale_targets(adaptive)
    if policy.combiner is not None and policy.combiner.combine_at == "parameters":
        choices = tuple(choice for choice in choices if choice != "feature")
    return choices


def _check_takes_weight(policy: Policy, names: str) -> None:
    combiner = policy.combiner
    takes = combiner is not None and "weight" in inspect.signature(combiner.combine).parameters
    if not takes or combiner.combine_at == "parameters":
        raise ValueError(
            f"policy: {type(policy.coefficients).__name__}() weighs the unimodal gradients and needs a combiner that "
            f"takes a weight, as UnimodalLosses() + ... or NormEqualization() + ...; got {names}"
        )


def check_distribution(plan: Plan, context: Any) -> None:
    """Reject a plan that does not work across several processes.

    Args:
        plan: the plan to check.
        context: the `DistributedContext`.

    Raises:
        ValueError: the policy needs whole gradients or weights, but each process holds only a shard.
    """
    again = plan.reads("responses") or plan.policy.objective
    argument = "policy"
    if again is None and isinstance(plan.scores, MaskedScores):
        argument, again = "scores", plan.scores
    if context.sharded and again is not None:
        raise ValueError(
            f"{argument}: {type(again).__name__}() runs the fusion again after the forward pass, when fully_shard() "
            f"has freed its weights; use it with DistributedDataParallel, or take another {argument}"
        )
    if context.sharded and plan.adds_noise:
        raise ValueError(
            "policy: OGMGE(noise=True) needs the deviation of whole gradients, of which every process has a part "
            "here; use it with DistributedDataParallel, or pass noise=False"
        )
    if plan.combines_at_parameters and not context.makes_gradients_apart():
        raise ValueError(
            "policy: MMPareto() makes the encoders' gradients itself, averaged over the processes; hand the wrapper "
            "DistributedDataParallel(model, find_unused_parameters=True), or use FeaturePareto(), the same rule at the "
            "encoders' outputs"
        )


def check_updated(
    plan: Plan, parameters: Sequence[tuple[Tensor, int]], names: Sequence[str], optimizer: Optimizer
) -> None:
    """Reject scaling the updates of an encoder if the optimizer has none of its parameters.

    Args:
        plan: the plan, which may scale updates.
        parameters: the encoders' parameters with the indices of their modalities.
        names: the modalities.
        optimizer: the wrapped optimizer.

    Raises:
        ValueError: the optimizer has no parameter of an encoder that is not frozen.
    """
    if plan.scale_at != "update":
        return
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    for index, name in enumerate(names):
        trained = [p for p, owner in parameters if owner == index and p.requires_grad]
        if trained and stepped.isdisjoint(trained):
            raise ValueError(
                f"apply='update' scales what this optimizer does, but it has no parameter of encoder {name!r}: "
                "pass 'gradient' or 'feature', or an optimizer over the parameters that the model has now"
            )
