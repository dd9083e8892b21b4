"""The definitions of `adamw_` and `sgd_`: optimizer steps on modulated gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cggm_ops.checks.optimizers import check_adamw, check_sgd
from cggm_ops.reference.tensors import widen


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """Take one step of AdamW (`decoupled`) or Adam on the modulated gradients."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    check_adamw(*lists, owner, grad_scale, update_scale, lr, beta1, beta2, eps, weight_decay)
    for index, (param, exp_avg, exp_avg_sq, step) in enumerate(
        zip(params, exp_avgs, exp_avg_sqs, steps, strict=True)
    ):
        p, m, v = (widen(tensor) for tensor in (param, exp_avg, exp_avg_sq))
        rate = lr * _factor(update_scale, owner, index)
        g = _modulated(grads[index], _factor(grad_scale, owner, index), maximize)
        if weight_decay != 0 and not decoupled:
            g = g + p * weight_decay
        count = step.double() + 1
        m = m + (g - m) * (1 - beta1)
        v = v * beta2 + g * g * (1 - beta2)
        denominator = v.sqrt() / (1 - beta2**count).sqrt() + eps
        decay = 1 - rate * weight_decay if decoupled else 1.0
        p = p * decay - rate / (1 - beta1**count) * (m / denominator)
        _store((param, p), (exp_avg, m), (exp_avg_sq, v), (step, count))


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """Take one step of SGD on the modulated gradients; with `first`, the buffers are only written."""
    lists = (params, grads, momentum_buffers)
    check_sgd(*lists, owner, grad_scale, update_scale, lr, momentum, dampening, weight_decay)
    for index, param in enumerate(params):
        p = widen(param)
        rate = lr * _factor(update_scale, owner, index)
        g = _modulated(grads[index], _factor(grad_scale, owner, index), maximize)
        if weight_decay != 0:
            g = g + p * weight_decay
        if momentum == 0:
            _store((param, p - rate * g))
            continue
        buffer = momentum_buffers[index]
        b = g if first else widen(buffer) * momentum + g * (1 - dampening)
        direction = g + b * momentum if nesterov else b
        _store((param, p - rate * direction), (buffer, b))


def _factor(scale: Tensor | None, owner: Sequence[int], index: int) -> Tensor | float:
    """Return the factor of a tensor, 0-dimensional in float64, or 1."""
    return 1.0 if scale is None or owner[index] < 0 else scale[owner[index]].double()


def _modulated(grad: Tensor, factor: Tensor | float, maximize: bool) -> Tensor:
    return widen(grad) * (-factor if maximize else factor)


def _store(*changes: tuple[Tensor, Tensor]) -> None:
    for target, value in changes:
        target.copy_(value)
