"""Head direction: turns the head's gradient towards the unimodal classifiers that lag behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cggm_ops import batched_cosine

from ..distributed.collectives import (
    average_over_ranks_,
    is_sharded,
    local,
    shard_groups,
    sum_over_shards,
    whole,
)
from ..policies.base import CoefficientUpdate, State
from ..policies.plan import HeadDirection, Plan
from . import step_state

if TYPE_CHECKING:
    from ..model.multimodal import MultimodalModel


def rotate_(
    gradient: Tensor, unimodal: Sequence[Tensor], cosines: Tensor, weights: Tensor, lam: float
) -> None:
    """Turn the head's gradient in place, in closed form.

    `g ← g + λ ‖g‖ Σ_i B_i (u_i / ‖u_i‖ − cos_i · g / ‖g‖)`. Each bracket is the part of `u_i / ‖u_i‖` orthogonal to
    `g`, so the norm stays the same to first order. A zero `u_i` contributes nothing.

    Args:
        gradient: `[C, H]`, gradient of the head's weight; mutated.
        unimodal: M tensors `[C, H]`, gradients of the classifiers' output weights.
        cosines: `[M]`, their cosines with `gradient`.
        weights: `[M]`, balancing terms `B_i`.
        lam: λ `>= 0`.
    """
    groups, gradient = shard_groups(gradient), local(gradient)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    stacked = torch.stack([local(u) for u in unimodal]).to(wide).flatten(1)  # [M, D], D of this shard
    norm = torch.linalg.vector_norm(gradient, dtype=wide)[None]
    norms = torch.cat([norm, torch.linalg.vector_norm(stacked, dim=1)])  # [1 + M]
    if groups:
        norms = sum_over_shards(norms.double().square(), groups).sqrt().to(wide)
    units = stacked / norms[1:, None].clamp_min(torch.finfo(wide).tiny)
    pull = (weights.to(wide) @ units).view_as(gradient)
    gradient.mul_(1 - lam * (weights @ cosines.to(weights.dtype))).add_(
        (lam * norms[0] * pull).to(gradient.dtype)
    )


class _LinearTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.to(weight.dtype))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, upstream.to(gradient.dtype) * gradient, None


def linear_term(value: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """A loss term with the given value and with `gradient` as its gradient with respect to `weight`.

    The gradient reaches the weight in the ordinary backward pass, so loss scaling, accumulation and gradient
    reduction treat it like the rest of the loss. The weight's values are not read.
    """
    return _LinearTerm.apply(value.detach(), weight, gradient.detach())


def gradient_term(
    loss: Tensor, unimodal: Tensor, head: Tensor, outputs: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """The paper's `L_gm = (1/M) Σ_i (|B_i| − B_i cos(∇_{W_Ω} L, ∇_{W_i} L_i))` (equation 9).

    It is differentiated through the head's gradient, with respect to the head's weight only. The gradients inside it
    are means over all ranks, so several processes give the same direction as one process on the whole batch.

    Args:
        loss: the multimodal loss, 0-dimensional, twice differentiable.
        unimodal: the sum of the M unimodal losses; each depends on one of `outputs`.
        head: weight `[C, H]` of the head.
        outputs: the M classifiers' output weights `[C, H]`.
        weights: `[M]`, balancing terms `B_i`.
    """
    gradients = torch.autograd.grad(unimodal, list(outputs), retain_graph=True, materialize_grads=True)
    with torch.enable_grad():
        (fusion,) = torch.autograd.grad(loss, head, create_graph=True)
        # Detached, because the zeros of torch 2.6 require grad.
        means = [fusion.detach().clone(), *(u.detach().to(fusion.dtype, copy=True) for u in gradients)]
        average_over_ranks_(means)
        mean = means[0].requires_grad_()
        term = (weights.abs() - weights * batched_cosine(mean, means[1:])).mean()
        (slope,) = torch.autograd.grad(term, mean)
        (gradient,) = torch.autograd.grad(fusion, head, slope, retain_graph=True)
    return linear_term(term, head, gradient)


def weights_state(head: Tensor, outputs: Sequence[Tensor], weights: Tensor) -> State:
    """Value and gradient of `G = (1/M) (Σ |B_i| − Σ B_i cos(W_i, W_Ω))` for the next step, as in the released script.

    Args:
        head: weight `[C, H]` of the head, `W_Ω`; gathered if it is sharded.
        outputs: the M classifiers' output weights `W_i`.
        weights: `[M]`, balancing terms `B_i`.
    """
    with torch.enable_grad():
        leaf = whole(head.detach()).requires_grad_()
        # a classifier that has broken down turns nothing: the cosine with zeros is 0
        finite = [whole(w.detach()).nan_to_num(0.0, 0.0, 0.0) for w in outputs]
        cosines = batched_cosine(leaf, finite)
        value = (weights.abs() - weights * cosines).mean()
        (gradient,) = torch.autograd.grad(value, leaf)
    return {"direction_value": value.detach(), "direction_gradient": gradient}


def initial_state(plan: Plan, model: MultimodalModel) -> State:
    """The policy's state before the first step, including the head direction's: everything a checkpoint holds.

    Args:
        plan: the roles that keep a state.
        model: provides the modalities and the head.
    """
    state = step_state.initial_state(plan, torch.zeros(len(model.encoders.names), device=model.device))
    if plan.direction is not None and plan.direction.kind == "weights":
        head = model.head_weight
        empty = {"device": head.device, "dtype": head.dtype}  # the full shape, even if the head is sharded
        state = {**state, "direction_value": torch.zeros((), **empty)}
        state["direction_gradient"] = torch.zeros(head.shape, **empty)
    return state


def loss_term(
    direction: HeadDirection | None,
    model: MultimodalModel,
    losses: tuple[Tensor, Tensor],
    weights: Tensor,
    state: State,
) -> Tensor | None:
    """The loss term of a head direction, times λ; None if this direction has no loss term.

    Args:
        direction: the kind of direction and its λ.
        model: provides the head and the classifiers' output layers.
        losses: the multimodal loss, and the sum of the M unimodal losses.
        weights: `[M]`, balancing terms of this step.
        state: the policy's state after the last step.

    Raises:
        RuntimeError: the head is sharded, so the gradient of the full weight cannot be applied to it.
    """
    if direction is None or direction.kind == "rotation":
        return None
    outputs = model.classifiers.output_weights()
    if not all(weight.requires_grad for weight in (model.head_weight, *outputs)):
        return None  # a frozen head has no gradient to turn
    _check_whole_head(is_sharded(model.head_weight))
    if direction.kind == "gradient":
        return direction.lam * gradient_term(*losses, model.head_weight, outputs, weights)
    if "direction_value" not in state:  # the first step; `weights_state` computes it for the next one
        return None
    term = linear_term(state["direction_value"], model.head_weight, state["direction_gradient"])
    return direction.lam * term


def turn_(
    direction: HeadDirection | None, model: MultimodalModel, update: CoefficientUpdate, cosines: Tensor
) -> State:
    """Apply a direction to the head's gradient, and return the state for the next step's loss term.

    Args:
        direction: the kind of direction and its λ.
        model: provides the head; a rotation mutates its gradient.
        update: this step's coefficients and balancing terms.
        cosines: `[M]`, cosines between the head's gradient and each classifier's.
    """
    if direction is None or direction.kind == "gradient":
        return {}
    if direction.kind == "weights":
        return weights_state(model.head_weight, model.classifiers.output_weights(), update.weights)
    fusion, unimodal = model.head_gradients()
    if fusion is not None:
        rotate_(fusion, unimodal, cosines, update.weights, direction.lam)
    return {}


def _check_whole_head(sharded: bool) -> None:
    """Reject a direction that needs the head's whole weight if the head is sharded.

    Raises:
        RuntimeError: the head is sharded.
    """
    if sharded:
        raise RuntimeError(
            "this policy's direction needs the head's whole weight after the forward pass: leave the head to "
            "fully_shard() of the whole model, without a fully_shard() of its own or reshard_after_forward=True"
        )
