"""Several policies at work together, each in its own place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .base import Application, Joint, Place, Policy

_JOINT = Joint()


def compose(*policies: Policy) -> Composition:
    """One policy of several that act in different places; `+` between policies calls it.

    Args:
        policies: at least one; a composition among them brings its parts.

    Raises:
        ValueError: two that act in the same place.

    >>> from cggm.policies import CGGM, ModalityDropout, UnimodalLosses
    >>> (UnimodalLosses() + CGGM() + ModalityDropout(0.35)).places
    ('coefficients', 'junction', 'dropout')
    """
    parts = [part for policy in policies for part in getattr(policy, "parts", (policy,))]
    taken: dict[Place, Policy] = {}
    for part in parts:
        for place in part.places:
            if place in taken:
                one, other = type(taken[place]).__name__, type(part).__name__
                raise ValueError(
                    f"policy: {one} and {other} both act in the same place ({place}) and cannot be added up; "
                    "keep one of them"
                )
            taken[place] = part
    return Composition(parts=tuple(parts))


def _from_part(place: Place, name: str) -> Any:
    """An attribute or method that is the one of the part in that place, or plain joint training's."""
    return property(lambda self: getattr(self._at(place), name), doc=f"As the {place} part has it.")


@dataclass(frozen=True, kw_only=True)
class Composition(Policy):
    """What `+` makes of policies: coefficients of one, junction rule of another, dropout of a third.

    A coefficient multiplies what the junction's rule has made of both gradients: with `UnimodalLosses() + CGGM()`,
    the sum of the multimodal and the unimodal gradient.

    Args:
        parts: the policies, no two of which take the same place; `compose` sees to that.
    """

    parts: tuple[Policy, ...]

    reads = _from_part("coefficients", "reads")
    permutations = _from_part("coefficients", "permutations")
    score = _from_part("coefficients", "score")
    lam = _from_part("coefficients", "lam")
    direction = _from_part("coefficients", "direction")
    noise = _from_part("coefficients", "noise")
    measure = _from_part("coefficients", "measure")
    initial_state = _from_part("coefficients", "initial_state")
    balance = _from_part("coefficients", "balance")
    figures = _from_part("coefficients", "figures")
    detach_features = _from_part("junction", "detach_features")
    meets_at = _from_part("junction", "meets_at")
    meet = _from_part("junction", "meet")
    adds = _from_part("junction", "adds")
    weigh = _from_part("junction", "weigh")
    dropout = _from_part("dropout", "dropout")

    @property
    def places(self) -> tuple[Place, ...]:  # type: ignore[override]
        """Every place that one of the parts takes."""
        order: tuple[Place, ...] = ("coefficients", "junction", "dropout")
        return tuple(place for place in order if place in self._parts_by_place)

    def applications(self, adaptive: bool) -> tuple[Application, ...]:
        """Where the coefficients can act: not at the features where the gradients meet behind them."""
        if "coefficients" not in self.places:
            return self._at("junction").applications(adaptive)
        choices = self._at("coefficients").applications(adaptive)
        if self.meets_at == "parameters":
            choices = tuple(choice for choice in choices if choice != "feature")
        return choices

    @cached_property
    def _parts_by_place(self) -> dict[Place, Policy]:
        return {place: part for part in reversed(self.parts) for place in part.places}

    def _at(self, place: Place) -> Policy:
        return self._parts_by_place.get(place, _JOINT)
