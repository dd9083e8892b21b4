"""Checks of the arguments of `adamw_` and `sgd_`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cggm_ops.checks.tensors import (
    check_dtype,
    check_factors,
    check_not_written,
    check_owner,
    check_same_device,
    check_written,
)


def check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
) -> None:
    """Refuse what neither `adamw_` nor `sgd_` can take."""
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
    written = check_written({"params": params, **states})
    for index, grad in enumerate(grads):
        check_not_written(grad, f"grads[{index}]", written)


def check_counters(params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    """Refuse step counters that `adamw_` cannot take."""
    _check_count(steps, "steps", params)
    for index, (step, param) in enumerate(zip(steps, params, strict=True)):
        if step.numel() != 1 or step.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"steps[{index}] must be one float32 or float64 number, found {list(step.shape)} of {step.dtype}"
            )
        if step.device != param.device and step.device.type != "cpu":
            raise ValueError(
                f"steps[{index}] must be on the CPU or on the device of params ({param.device}), found {step.device}: "
                "move it with .to(device)"
            )


def _check_count(tensors: Sequence[Tensor], name: str, params: Sequence[Tensor]) -> None:
    if len(tensors) != len(params):
        raise ValueError(f"{name} must hold one tensor per parameter ({len(params)}), found {len(tensors)}")
