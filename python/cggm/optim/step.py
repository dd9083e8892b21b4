"""How a step is taken once its coefficients are known: by the fused kernels, or by the wrapped optimizer itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cggm_ops import Modulation

from ..distributed.collectives import local
from ..model.multimodal import MultimodalModel
from ..policies.plan import Plan
from ..torch_private import foreach_mul_
from .base import OptimizerWrapper, complete_state
from .scaling import by_place, gradient_norms
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
        return self.can_fuse(scaled or plan.bounds_step or self._optimizer.max_norm is not None)

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
                self._clip(state)
                return loss

            return self._step_base(state, evaluate)
        self._check_fused()
        with torch.no_grad():  # around the wrapped optimizer's own step it would be seen by hooks
            modulate(wait=True)
            updates = self._update_scale(state)
            if self.can_fuse(state.left_to_step or updates is not None or self._clips(state)):
                with state.irrevocable("the fused step"):
                    self._step_fused(state, updates)
                return None
            self._clip(state)
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

    def _clips(self, state: StepState) -> bool:
        """Whether the gradient's norm has a limit in this step."""
        bounded = state.plan.bounds_step and state.update is not None
        return bounded or self._optimizer.max_norm is not None

    def _step_fused(self, state: StepState, updates: Tensor | None) -> None:
        """Take a step by the kernels.

        Args:
            state: its coefficients multiply the gradients if they have been left to the step.
            updates: `[M]`, which multiply the updates.
        """
        owner = self._owner()
        modalities = len(self._model.encoders.names)

        def extended(
            scale: Tensor | None,
        ) -> Tensor | None:  # [M + 1], the last entry for the rest of the model
            return None if scale is None else torch.cat([scale, scale.new_ones(1)])

        gradients = state.update.coefficients if state.left_to_step else None
        grad_scale, update_scale = extended(gradients), extended(updates)
        if self._clips(state):
            squared = self._squared_norms()
            grad_scale = torch.ones_like(squared) if grad_scale is None else grad_scale.to(squared)
            grad_scale = grad_scale * self._clip_factor(state, squared * grad_scale.square())

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

    def _clip(self, state: StepState) -> None:
        """Clip the model's gradients in place, as the fused step does it on the way."""
        clipped = [p.grad for p in self._clipped()]
        if clipped and self._clips(state):
            factor = self._clip_factor(state, self._squared_norms())
            for gradients, _ in by_place((local(g), 0, ()) for g in clipped).values():
                foreach_mul_(gradients, factor.to(gradients[0].device))

    def _clipped(self) -> list[Tensor]:
        """The parameters whose gradients are clipped: all of them without the unimodal classifiers' own."""
        own = set(map(id, self._model.classifiers.parameters()))
        parameters = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p for p in parameters if p.grad is not None and id(p) not in own]

    def _squared_norms(self) -> Tensor:
        """Squared gradient norms `[M + 1]`: of the encoders, and of the rest of the model."""
        owner, rest = self._owner(), len(self._model.encoders.names)
        parameters = [(p, owner.get(id(p), rest)) for p in self._clipped()]
        device = parameters[0][0].device if parameters else None
        parameters.sort(key=lambda pair: pair[1])
        ones = torch.ones(rest + 1, dtype=torch.float32, device=device)
        return gradient_norms(parameters, ones).double().square()

    def _clip_factor(self, state: StepState, squared: Tensor) -> Tensor:
        """What the model's gradient is multiplied by, at most 1: the smaller of two limits wins, applied once.

        The limits are `max_norm`, and what the combiner makes of the norm that joint training's gradient would have.

        Args:
            state: of the step.
            squared: `[M + 1]`, squared norms of the encoders' gradients and of the rest of the model's.
        """
        norm = squared.sum().sqrt()
        factor = torch.ones_like(norm)
        if state.plan.bounds_step and state.update is not None:
            shares = self._model.encoders.joint_shares().to(squared)
            joint = (squared * torch.cat([shares, squared.new_ones(1)])).sum().sqrt()
            factor = state.limit(joint) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        if self._optimizer.max_norm is not None:
            factor = torch.minimum(factor, self._optimizer.max_norm / (norm + 1e-6))
        return factor.clamp(max=1.0).float()

    def _owner(self) -> dict[int, int]:
        """Places in the scales by the parameters' ids: the modality, -1 for the classifiers, none for the rest."""
        parameters = self._model.encoders.encoder_parameters()
        if self._known[0] is not parameters:
            classifiers = {id(p): -1 for p in self._model.classifiers.parameters()}
            self._known = (parameters, {id(p): i for p, i in parameters} | classifiers)
        return self._known[1]
