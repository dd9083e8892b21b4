"""How a step is taken once its coefficients are known: by the fused kernels, or by the wrapped optimizer itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cggm_ops import Modulation, scale_

from ..model.multimodal import MultimodalModel
from ..policies.plan import Plan
from .base import OptimizerWrapper, complete_state
from .step_state import StepState
from .update_scaling import UpdateScaling

Fused = Literal["auto"] | bool
_NONE = Modulation()


class StepExecutor:
    """Steps the wrapped optimizer with the coefficients of the pending step, and clips on the way.

    Args:
        optimizer: the wrapper; its `base` is stepped, its `max_norm` asked at every step.
        model: whose parameters belong to which modality.
        fused: `"auto"` takes the fused kernels where there is a coefficient or a norm to apply, and else the wrapped
            optimizer's own step; True takes them in every step; False never.

    Raises:
        TypeError: another value of `fused`.
    """

    def __init__(self, optimizer: OptimizerWrapper, model: MultimodalModel, fused: Fused) -> None:
        if fused != "auto" and not isinstance(fused, bool):
            raise TypeError(f"fused must be 'auto', True or False, got {fused!r}")
        self._optimizer = optimizer
        self._fused_step = optimizer.fused_step
        self._model = model
        self._fused = fused
        self._known: tuple[Any, dict[int, int]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": (None, {})}  # ids are not those of a copy

    def uses_fused_step(self, plan: Plan) -> bool:
        """Whether a balanced step goes through the kernels."""
        scaled = plan.scale_at == "update" or (plan.scale_at == "gradient" and not plan.adds_noise)
        return self.can_fuse(scaled or self._optimizer.max_norm is not None)

    def can_fuse(self, folds: bool) -> bool:
        """Whether the kernels take a step; with `"auto"` only one that `folds` coefficients or a norm in."""
        wanted = folds if self._fused == "auto" else self._fused
        return wanted and self._fused_step.unsupported_reason() is None

    def step(self, state: StepState, closure: Callable[[], Any] | None, modulate: Callable[..., None]) -> Any:
        """Modulate, and take the step.

        Args:
            state: of the step; filled by the closure, where there is one.
            closure: re-evaluates the model, calling `balance()` and `backward()`.
            modulate: applies coefficients to the gradients, or with `wait=True` leaves them to the fused step.

        Raises:
            RuntimeError: `fused=True`, and the kernels cannot take this step.
        """
        if closure is not None:

            def evaluate() -> Any:
                loss = closure()
                modulate(wait=False)
                self._clip()
                return loss

            return self._step_base(state, evaluate)
        self._check_fused()
        with torch.no_grad():  # around the wrapped optimizer's own step it would be seen by hooks
            modulate(wait=True)
            updates = self._update_scale(state)
            folds = state.left_to_step or updates is not None or self._optimizer.max_norm is not None
            if self.can_fuse(folds):
                with state.irrevocable("the fused step"):
                    self._step_fused(state.update.coefficients if state.left_to_step else None, updates)
                return None
        self._clip()
        return self._step_base(state, None)

    def _update_scale(self, state: StepState) -> Tensor | None:
        """The coefficients `[M]` where they scale updates."""
        scales = state.plan.scale_at == "update" and state.update is not None
        return state.update.coefficients if scales else None

    def _check_fused(self) -> None:
        """Refuse a step that the kernels cannot take where `fused=True`.

        Raises:
            RuntimeError: the reason why they cannot.
        """
        reason = self._fused_step.unsupported_reason() if self._fused is True else None
        if reason is not None:
            raise RuntimeError(f"fused=True, but this step cannot be fused: {reason}; pass fused='auto'")

    def _step_fused(self, coefficients: Tensor | None, updates: Tensor | None) -> None:
        """Take a step by the kernels.

        Args:
            coefficients: `[M]`, which multiply the gradients; None where they have been multiplied already.
            updates: `[M]`, which multiply the updates.
        """
        owner = self._owner()
        modalities = len(self._model.encoders.names)

        def extended(
            scale: Tensor | None,
        ) -> Tensor | None:  # [M + 1], the last entry for the rest of the model
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

        self._fused_step.step(modulate)

    def _step_base(self, state: StepState, closure: Callable[[], Any] | None) -> Any:
        """Have the wrapped optimizer take its own step, and scale what it does to the encoders.

        An error that comes after the parameters have changed, from a hook, say, leaves the scaled update.
        """
        scales = state.plan.scale_at == "update" and (closure is not None or state.update is not None)
        scaling = UpdateScaling(self._model.encoders.encoder_parameters()) if scales else None
        complete_state(self._optimizer.base)
        step = partial(self._optimizer.base.step, *([] if closure is None else [closure]))
        if scaling is None:
            return step()
        with state.irrevocable("the optimizer's step"):
            try:
                return step()
            finally:
                updates = self._update_scale(state)
                if updates is not None:
                    scaling.apply(updates)

    def _clip(self) -> None:
        if self._optimizer.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._clipped(), self._optimizer.max_norm)

    def _clipped(self) -> list[Tensor]:
        """The parameters that `max_norm` is about: all that have gradients, without the unimodal classifiers' own."""
        own = set(map(id, self._model.classifiers.parameters()))
        parameters = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p for p in parameters if p.grad is not None and id(p) not in own]

    def _clipping(self, scale: Tensor | None, owner: dict[int, int]) -> Tensor:
        """The scale `[M + 1]` times the factor that clips; the gradients are read once, for their norm."""
        rest = len(self._model.encoders.names)
        places: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
        for parameter in self._clipped():
            grads, owners = places.setdefault(parameter.device, ([], []))
            grads.append(parameter.grad)
            owners.append(owner.get(id(parameter), rest))
        squared: Tensor | None = None
        for device, (grads, owners) in places.items():
            ones = torch.ones(rest + 1, dtype=torch.float32, device=device)
            sums = scale_(grads, owners, ones)[:-1]  # [M + 1]
            squared = sums if squared is None else squared + sums.to(squared.device)
        if squared is None:
            return torch.ones(rest + 1, dtype=torch.float32)
        scale = torch.ones_like(squared) if scale is None else scale.to(squared)
        norm = (squared * scale.square()).sum().sqrt()
        return scale * (self._optimizer.max_norm / (norm + 1e-6)).clamp(max=1.0)

    def _owner(self) -> dict[int, int]:
        """Places in the scales by the parameters' ids: the modality, -1 for the classifiers, none for the rest."""
        parameters = self._model.encoders.encoder_parameters()
        if self._known[0] is not parameters:
            classifiers = {id(p): -1 for p in self._model.classifiers.parameters()}
            self._known = (parameters, {id(p): i for p, i in parameters} | classifiers)
        return self._known[1]
