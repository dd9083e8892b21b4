"""Checks of the arguments of `adamw_` and `sgd_`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cggm_ops.checks.tensors import (
    check_dtype,
    check_factors,
    check_not_written,
    check_numbers,
    check_owner,
    check_same_device,
    check_written,
)


def check_adam_numbers(lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
    """Refuse hyper-parameters that `adamw_` cannot take."""
    check_numbers(lr=lr, eps=eps, weight_decay=weight_decay)
    check_numbers(1, beta1=beta1, beta2=beta2)


def check_sgd_numbers(lr: float, momentum: float, dampening: float, weight_decay: float) -> None:
    """Refuse hyper-parameters that `sgd_` cannot take."""
    check_numbers(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)


def check_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    *settings: float,
) -> None:
    """Refuse what `adamw_` cannot take; `settings` are its other arguments, in their order."""
    check_adam_numbers(*settings[:5])
    _check_counters(params, steps)
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    _check_step(params, grads, states, owner, grad_scale, update_scale, steps)


def check_sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    *settings: float,
) -> None:
    """Refuse what `sgd_` cannot take; `settings` are its other arguments, in their order."""
    check_sgd_numbers(*settings[:4])
    states = {"momentum_buffers": momentum_buffers} if settings[1] != 0 else {}
    _check_step(params, grads, states, owner, grad_scale, update_scale)


def _check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    steps: Sequence[Tensor] = (),
) -> None:
    """Refuse tensors that neither `adamw_` nor `sgd_` can take; `steps` are counters that change, too."""
    lists = {"grads": grads, **states}
    for name, tensors in lists.items():
        _check_count(tensors, name, params)
    if owner and len(owner) != len(params):
        raise ValueError(
            f"owner must name one modality per tensor in params, found {len(owner)} for {len(params)}"
        )
    for name, scale in (("grad_scale", grad_scale), ("update_scale", update_scale)):
        if scale is not None:
            check_factors(scale, 1, name)
            check_owner(owner, len(params), "params", scale.numel(), name)
            if params:
                check_same_device(scale, params[0], name, "params")
    for index, param in enumerate(params):
        check_dtype(param, "params")
        check_same_device(param, params[0], "params", "params[0]")
        for name, tensors in lists.items():
            tensor = tensors[index]
            if (
                tensor.shape != param.shape
                or tensor.dtype != param.dtype
                or tensor.layout != torch.strided
                or (name != "grads" and tensor.stride() != param.stride())
            ):
                raise ValueError(
                    f"{name}[{index}] must have the shape, strides and dtype of its parameter ({list(param.shape)}, "
                    f"{param.dtype}), found {list(tensor.shape)}, {tensor.dtype}, {tensor.layout}"
                )
            check_same_device(tensor, param, name, "params")
    written = check_written({"params": params, **states, "steps": steps})
    for name, scale in (("grad_scale", grad_scale), ("update_scale", update_scale)):
        if scale is not None:
            check_not_written(scale, name, written)
    for index, grad in enumerate(grads):
        check_not_written(grad, f"grads[{index}]", written)


def _check_counters(params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    """Refuse step counters that `adamw_` cannot take."""
    _check_count(steps, "steps", params)
    for index, (step, param) in enumerate(zip(steps, params, strict=True)):
        if step.numel() != 1 or step.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"steps[{index}] must be one float32 or float64 number, found {list(step.shape)} of {step.dtype}"
            )
        if step.device != param.device and (step.device.type != "cpu" or param.device.type == "meta"):
            raise ValueError(
                f"steps[{index}] must be on the CPU or on the device of params ({param.device}), found {step.device}: "
                "move it with .to(device)"
            )


def _check_count(tensors: Sequence[Tensor], name: str, params: Sequence[Tensor]) -> None:
    if len(tensors) != len(params):
        raise ValueError(f"{name} must hold one tensor per parameter ({len(params)}), found {len(tensors)}")
