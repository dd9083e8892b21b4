"""The wrapped optimizer's own step, and how any step is finished: completely, even after an error or an interrupt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..finishing import surely
from ..model.encoders import EncoderSet
from .base import complete_state
from .step_state import StepState
from .update_scaling import UpdateScaling

UNFINISHED = "the optimizer's step did not finish, and parameters may have changed already"
COMPLETE = "it is complete, and the error came after that"


def update_scale(state: StepState) -> Tensor | None:
    """The coefficients `[M]` if they scale updates, otherwise None."""
    scales = state.plan.scale_at == "update" and state.update is not None
    return state.update.coefficients if scales else None


def prepared_commit(state: StepState, encoders: EncoderSet) -> Callable[[], None]:
    """What commits a step and says that it is complete. Nothing is allocated then, and it can be called again."""
    commit = None if state.update is None else state.prepared_commit()

    def finish() -> None:
        if state.unrepeatable == COMPLETE:
            return
        if commit is not None:
            commit()
            encoders.set_rates(state.rates)
        state.unrepeatable = COMPLETE

    return finish


def own_step(
    base: Optimizer, state: StepState, encoders: EncoderSet, closure: Callable[[], Any] | None
) -> Any:
    """Let the wrapped optimizer take its own step, and scale its updates of the encoders.

    An error from one of its hooks, for example, is raised when all is done. After one that comes before the optimizer
    may change parameters, the step can be taken again.

    Args:
        base: the wrapped optimizer.
        state: the state of this step; a closure fills it.
        encoders: their updates are scaled if the plan says so.
        closure: re-evaluates the model, up to gradients that are ready for the optimizer.
    """
    scales = state.plan.scale_at == "update" and (closure is not None or state.update is not None)
    scaling = UpdateScaling(encoders.encoder_parameters()) if scales else None
    complete_state(base)
    begun: list[tuple[Tensor | None, Callable[[], None]]] = []

    def begin(*_: Any) -> None:
        found = update_scale(state), prepared_commit(state, encoders)
        begun[:], state.unrepeatable = [found], UNFINISHED

    def evaluate() -> Any:
        state.unrepeatable = None  # some optimizers evaluate several times
        loss = closure()  # type: ignore[misc]
        begin()
        return loss

    def finish() -> None:
        hooks.pop(begin, None)
        for updates, commit in begun:
            if scaling is not None and updates is not None:
                scaling.apply(updates)
            commit()

    hooks = base._optimizer_step_pre_hooks
    with surely(finish):
        if closure is None:
            hooks[begin] = begin  # the last of them: what fails after it has changed parameters
        result = base.step(*([] if closure is None else [evaluate]))
        if not begun:  # an optimizer that calls no hooks
            begin()
        return result
