"""Gradient modulation between backward and step: coefficients, noise, head direction and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ..constants import constant
from ..model.multimodal import MultimodalModel
from . import direction
from .scaling import Parameters, add_noise_, deviations, gradient_norms, head_cosines, scale_gradients_
from .statistics import Statistics
from .step_state import StepState


def modulate_step(
    model: MultimodalModel,
    state: StepState,
    parameters: Parameters,
    wait: bool,
    diagnostics: Mapping[str, Tensor],
) -> Statistics:
    """Modulate the gradients of the current step and measure them.

    Args:
        model: the gradients of its encoders and its head are mutated.
        state: provides this step's coefficients; records whether they were applied or left to the fused step.
        parameters: the encoders' parameters.
        wait: whether to leave the coefficients to a fused step where possible.
        diagnostics: additional statistics from the coefficient role.
    """
    plan, coefficients = state.plan, state.update.coefficients
    scales = plan.scale_at == "gradient"
    left_to_step = wait and scales and not plan.adds_noise  # noise is added after the coefficients
    strengths = deviations(parameters) if plan.adds_noise else None
    heads = model.head_gradients()
    measured: dict[str, Tensor] = {}
    if scales and not left_to_step:
        measured["cosines"], measured["grad_norms"] = scale_gradients_(parameters, coefficients, *heads)
    else:
        measured["cosines"] = head_cosines(*heads, coefficients)
    if strengths is not None:
        add_noise_(parameters, strengths)
        measured.pop("grad_norms", None)  # measured before the noise
    measured |= {"scores": state.scores[0], "coefficients": coefficients, **diagnostics}
    measured |= model.encoders.record.statistics()
    if plan.dropout is not None:
        rates = tuple(plan.dropout.rates(coefficients.numel()))
        measured["dropout_rates"] = (
            constant(rates, coefficients.device) if state.rates is None else state.rates.clone()
        )
    state.remember(direction.turn_(plan.direction, model, state.update, measured["cosines"]))
    if not model.classifiers.comparable:
        del measured["cosines"]
    norms = partial(gradient_norms, parameters, coefficients, left_to_step)
    # With sharding this is a collective: run it now on every rank, not when one rank happens to read it.
    if model.context.sharded or model.encoders.record.on:
        measured.setdefault("grad_norms", norms())
    state.modulated, state.left_to_step = True, left_to_step
    later = {} if model.guard.skipped is None else {"skipped": model.guard.skipped.clone}
    return Statistics(measured, model.encoders.names, grad_norms=norms, **later)
