"""Takes a step once its coefficients are known, in the fused kernels or in the wrapped optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cggm_ops import Modulation, scale_

from ..constants import constant
from ..distributed.collectives import local
from ..finishing import surely
from ..model.multimodal import MultimodalModel
from ..policies.plan import Plan
from ..torch_private import foreach_mul_
from .base import OptimizerWrapper
from .own_step import UNFINISHED, own_step, prepared_commit, update_scale
from .scaling import by_place, gradient_norms
from .step_state import StepState

Fused = Literal["auto"] | bool
_NONE = Modulation()


class StepExecutor:
    """Steps the wrapped optimizer with the coefficients of the pending step, and clips gradients.

    Args:
        optimizer: the wrapper; its `base` takes the step, and its `max_norm` is read at every step.
        model: maps parameters to modalities.
        fused: `"auto"` uses the fused kernels if there are coefficients or a norm limit to apply, otherwise the
            wrapped optimizer's own step; True always uses the kernels; False never does.

    Raises:
        TypeError: `fused` has another value.
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
        return {**self.__dict__, "_known": (None, {})}  # a copy's parameters have other ids

    def uses_fused_step(self, plan: Plan) -> bool:
        """Whether a balanced step runs in the fused kernels."""
        scaled = plan.scale_at == "update" or (plan.scale_at == "gradient" and not plan.adds_noise)
        return self.can_fuse(scaled or plan.bounds_step or self._optimizer.max_norm is not None)

    def can_fuse(self, folds: bool) -> bool:
        """Whether the kernels take a step; with `"auto"`, only if it `folds` in coefficients or a norm limit."""
        wanted = folds if self._fused == "auto" else self._fused
        return wanted and self._fused_step.unsupported_reason() is None

    def step(self, state: StepState, closure: Callable[[], Any] | None, modulate: Callable[..., None]) -> Any:
        """Modulate the gradients and take the step.

        Args:
            state: the state of this step; a closure fills it.
            closure: re-evaluates the model, calling `balance()` and `backward()`.
            modulate: applies the coefficients to the gradients; with `wait=True` it may leave them to the fused step.

        Raises:
            RuntimeError: `fused=True`, but the kernels cannot take this step.
        """
        encoders = self._model.encoders
        if closure is not None:

            def evaluate() -> Any:
                loss = closure()
                modulate(wait=False)
                self._clip(state)
                return loss

            return own_step(self._optimizer.base, state, encoders, evaluate)
        self._check_fused()
        with torch.no_grad():  # not around the wrapped optimizer's own step, where hooks would run under it
            modulate(wait=True)
            updates = update_scale(state)
            if self.can_fuse(state.left_to_step or updates is not None or self._clips(state)):
                self._step_fused(state, updates)
                return None
            self._clip(state)
        return own_step(self._optimizer.base, state, encoders, None)

    def _check_fused(self) -> None:
        """Reject a step that the kernels cannot take when `fused=True`.

        Raises:
            RuntimeError: the kernels cannot take the step; the message says why.
        """
        reason = self._fused_step.unsupported_reason() if self._fused is True else None
        if reason is not None:
            raise RuntimeError(f"fused=True, but this step cannot be fused: {reason}; pass fused='auto'")

    def _clips(self, state: StepState) -> bool:
        """Whether this step limits the gradient's norm."""
        bounded = state.plan.bounds_step and state.update is not None
        return bounded or self._optimizer.max_norm is not None

    def _step_fused(self, state: StepState, updates: Tensor | None) -> None:
        """Take the step in the kernels.

        Args:
            state: its coefficients scale the gradients if modulation left them to the step.
            updates: `[M]`, coefficients that scale the updates, or None.
        """
        owner = self._owner()
        rest = len(self._model.encoders.names)

        def extended(scale: Tensor | None) -> Tensor | None:  # [M + 2], 1 for what no coefficient scales
            return None if scale is None else torch.cat([scale, scale.new_ones(2)])

        gradients = state.update.coefficients if state.left_to_step else None
        grad_scale, update_scale = extended(gradients), extended(updates)
        if self._clips(state):
            squared = self._squared_norms_by_kernel()
            grad_scale = torch.ones_like(squared) if grad_scale is None else grad_scale.to(squared)
            grad_scale = grad_scale * self._clip_factor(state, squared * grad_scale.square())

        def modulate(parameters: list[Tensor]) -> Modulation:
            if grad_scale is None and update_scale is None:
                return _NONE
            device = parameters[0].device
            return Modulation(
                owner=[owner.get(id(p), rest) for p in parameters],
                grad_scale=None if grad_scale is None else grad_scale.to(device),
                update_scale=None if update_scale is None else update_scale.to(device),
            )

        launches, commit = self._fused_step.prepared(modulate), prepared_commit(state, self._model.encoders)

        def finish() -> None:
            for launch in launches:
                launch()
            commit()

        state.unrepeatable = UNFINISHED
        with surely(finish):
            self._fused_step.run(finish)

    def _clip(self, state: StepState) -> None:
        """Clip the model's gradients in place; the fused step clips inside its kernels instead."""
        clipped = self._clipped() if self._clips(state) and not state.clipped else []
        if clipped:
            factor = self._clip_factor(state, self._squared_norms(clipped))
            with state.irrevocable("clipping"):
                for gradients, _ in by_place((local(p.grad), 0, ()) for p, _ in clipped).values():
                    foreach_mul_(gradients, factor.to(gradients[0].device))
                state.clipped = True

    def _clipped(self) -> list[tuple[Tensor, int]]:
        """Parameters whose gradients are clipped, with their places in `[M + 2]`; without the classifiers' own."""
        owner, rest = self._owner(), len(self._model.encoders.names)
        found = (p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None)
        return [(p, place) for p in found if (place := owner.get(id(p), rest)) >= 0]

    def _squared_norms(self, clipped: Sequence[tuple[Tensor, int]]) -> Tensor:
        """Squared gradient norms `[M + 2]`: of the encoders, the rest of the model, the encoders' shared parameters."""
        ones = self._ones(clipped[0][0].device if clipped else None)
        return gradient_norms(sorted(clipped, key=lambda pair: pair[1]), ones).double().square()

    def _squared_norms_by_kernel(self) -> Tensor:
        """The same in one launch per device, of gradients that the fused step can read."""
        places = by_place((p.grad, place, ()) for p, place in self._clipped())
        sums = [scale_(*lists, self._ones(device))[:-1] for (device, _), lists in places.items()]
        return sum((s.to(sums[0].device) for s in sums[1:]), sums[0]) if sums else self._ones(None).double()

    def _ones(self, device: torch.device | None) -> Tensor:
        return constant((1.0,) * (len(self._model.encoders.names) + 2), device or torch.device("cpu"))

    def _clip_factor(self, state: StepState, squared: Tensor) -> Tensor:
        """The factor, at most 1, that clips the model's gradient to the smaller of two limits.

        One limit is `max_norm`. The other comes from the combiner, given the gradient norm of plain joint training.

        Args:
            state: the state of this step.
            squared: `[M + 2]`, as from `_squared_norms`.
        """
        norm = squared.sum().sqrt()
        factor = torch.ones_like(norm)
        if state.plan.bounds_step and state.update is not None:
            joint = (squared * self._model.encoders.shares.squared().to(squared)).sum().sqrt()
            factor = state.limit(joint) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        if self._optimizer.max_norm is not None:
            factor = torch.minimum(factor, self._optimizer.max_norm / (norm + 1e-6))
        return factor.clamp(max=1.0).float()

    def _owner(self) -> dict[int, int]:
        """Index into the scales by parameter id: the modality, M + 1 for parameters that encoders share, or -1 for
        classifiers; the rest has no entry.
        """
        parameters = self._model.encoders.encoder_parameters()
        if self._known[0] is not parameters:
            # A head that the classifiers share is the model's own, and is scaled and clipped with it.
            shared = set(map(id, self._model.own_parameters()))
            classifiers = {id(p): -1 for p in self._model.classifiers.parameters() if id(p) not in shared}
            between = dict.fromkeys(
                map(id, self._model.encoders.shared_parameters()), len(self._model.encoders.names) + 1
            )
            self._known = (parameters, {id(p): i for p, i in parameters} | between | classifiers)
        return self._known[1]
