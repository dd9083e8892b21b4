"""How a step is taken once its coefficients are known: folded into the optimizer's rule where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cggm_ops import Modulation, scale_

from ..model.multimodal import MultimodalModel
from ..policies.base import Application, Policy
from .base import WrappedOptimizer, complete_state
from .fused import Folding
from .scaling import UpdateScaling
from .step_state import PendingStep

_NONE = Modulation()


class Stepping:
    """Steps the wrapped optimizer with the coefficients of the pending step, and clips on the way.

    Args:
        optimizer: the wrapper; its `base` is stepped, its `max_norm` asked at every step.
        model: whose parameters belong to which modality.
        application: where the policy's coefficients act.
    """

    def __init__(self, optimizer: WrappedOptimizer, model: MultimodalModel, application: Application) -> None:
        self._optimizer = optimizer
        self._folding: Folding = optimizer.folding
        self._model = model
        self._application = application
        self._known: tuple[Any, dict[int, int]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": (None, {})}  # ids are not those of a copy

    def may_wait(self, policy: Policy) -> bool:
        """Whether the coefficients can be left to the step: nothing else has to see the scaled gradients."""
        acts = self._application == "gradient" and "coefficients" in policy.places
        return acts and not policy.noise and self._folding.refusal() is None

    def step_folded(self, pending: PendingStep, waits: bool) -> bool:
        """Take a step by the kernels where it can be folded, once the gradients are modulated; whether it was.

        Args:
            pending: its coefficients, if any.
            waits: whether the gradients have still to be multiplied by them.
        """
        coefficients = None if pending.balance is None else pending.balance.coefficients
        updates = coefficients if self._application == "update" else None
        wanted = coefficients is not None or self._optimizer.max_norm is not None
        if waits or (wanted and self._folding.refusal() is None):
            self._fold(coefficients if waits else None, updates)
            return True
        return False

    def step_unfolded(
        self,
        pending: PendingStep,
        closure: Callable[[], Any] | None,
        modulate: Callable[[], None] | None,
    ) -> Any:
        """Have the wrapped optimizer take its own step.

        Args:
            pending: filled by the closure, where there is one.
            closure: re-evaluates the model, calling `balance()` and `backward()`.
            modulate: to be called after the closure.
        """

        def evaluate() -> Any:
            loss = closure()
            modulate()
            self._clip()
            return loss

        updated = self._application == "update" and (closure is not None or pending.balance is not None)
        scaling = UpdateScaling(self._model.modalities.owned()) if updated else None
        complete_state(self._optimizer.base)
        if closure is None:
            self._clip()
            result = self._optimizer.base.step()
        else:
            result = self._optimizer.base.step(evaluate)
        if scaling is not None and pending.balance is not None:
            scaling.apply(pending.balance.coefficients)
        return result

    def _clip(self) -> None:
        if self._optimizer.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._clipped(), self._optimizer.max_norm)

    def _clipped(self) -> list[Tensor]:
        """The parameters that `max_norm` is about: all that have gradients, without the unimodal classifiers'."""
        own = set(map(id, self._model.classifiers.parameters()))
        parameters = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p for p in parameters if p.grad is not None and id(p) not in own]

    def _fold(self, coefficients: Tensor | None, updates: Tensor | None) -> None:
        """Scales are tables `[M + 1]`: one entry per modality, and one for the rest of the model."""
        owner = self._owner()

        def extended(scale: Tensor | None) -> Tensor | None:
            return None if scale is None else torch.cat([scale, scale.new_ones(1)])

        grad_scale, update_scale = extended(coefficients), extended(updates)
        if self._optimizer.max_norm is not None:
            grad_scale = self._clipping(grad_scale, owner)

        def modulate(parameters: list[Tensor]) -> Modulation:
            if grad_scale is None and update_scale is None:
                return _NONE
            device = parameters[0].device
            return Modulation(
                owner=[owner.get(id(p), modalities) for p in parameters],
                grad_scale=None if grad_scale is None else grad_scale.to(device),
                update_scale=None if update_scale is None else update_scale.to(device),
            )

        modalities = len(self._model.modalities.names)
        self._folding.step(modulate)

    def _clipping(self, scale: Tensor | None, owner: dict[int, int]) -> Tensor:
        """The scale `[M + 1]` times the factor that clips; the gradients are read once, for their norm."""
        rest = len(self._model.modalities.names)
        places: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
        for parameter in self._clipped():
            grads, owners = places.setdefault(parameter.device, ([], []))
            grads.append(parameter.grad)
            owners.append(owner.get(id(parameter), rest))
        squared: Tensor | None = None
        for device, (grads, owners) in places.items():
            sums = scale_(grads, owners, torch.ones(rest + 1, device=device))[:-1]  # [M + 1]
            squared = sums if squared is None else squared + sums.to(squared.device)
        if squared is None:
            return torch.ones(rest + 1)
        scale = torch.ones_like(squared) if scale is None else scale.to(squared)
        norm = (squared * scale.square()).sum().sqrt()
        return scale * (self._optimizer.max_norm / (norm + 1e-6)).clamp(max=1.0)

    def _owner(self) -> dict[int, int]:
        """Places in the scales by the parameters' ids: the modality, -1 for the classifiers, none for the rest."""
        owned = self._model.modalities.owned()
        if self._known[0] is not owned:
            classifiers = {id(p): -1 for p in self._model.classifiers.parameters()}
            self._known = (owned, {id(p): i for p, i in owned} | classifiers)
        return self._known[1]
