"""Validation of optimizer steps for the implementations in Python; csrc/check_step.h holds the same rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cggm_ops.checks import check_dtype, check_not_written, check_same_device, check_writable


def check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Refuse what `adamw_` and `sgd_` cannot take."""
    scales = {"grad_scale": grad_scale, "update_scale": update_scale}
    lists = {"grads": grads, **states}
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"{name} must hold one tensor per parameter ({len(params)}), found {len(tensors)}"
            )
    for name, scale in scales.items():
        if scale is not None:
            _check_scale(scale, name, owner, len(params))
    if found_inf is not None and (found_inf.numel() != 1 or found_inf.dtype != torch.float32):
        raise ValueError(
            f"found_inf must be one float32 number, found {list(found_inf.shape)} of {found_inf.dtype}"
        )
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
    for name, tensor in {**scales, "found_inf": found_inf}.items():
        if tensor is not None and params:
            check_same_device(tensor, params[0], name, "params")
    mutated = [tensor for tensors in (params, *states.values()) for tensor in tensors]
    check_writable(mutated, "params and their state")
    check_not_written(grads, "grads", mutated, "params and their state")


def check_steps(params: Sequence[Tensor], steps: Sequence[Tensor], found_inf: Tensor | None) -> None:
    """Refuse step counters that `adamw_` cannot take."""
    if len(steps) != len(params):
        raise ValueError(f"steps must hold one tensor per parameter ({len(params)}), found {len(steps)}")
    for index, (step, param) in enumerate(zip(steps, params, strict=True)):
        if step.numel() != 1 or step.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"steps[{index}] must be one float32 or float64 number, found {list(step.shape)} of {step.dtype}"
            )
        if step.device != param.device and (step.device.type != "cpu" or found_inf is not None):
            raise ValueError(
                f"steps[{index}] must be on the CPU or on the device of params ({param.device}), and there where "
                f"found_inf is given, found {step.device}: move it with .to(device)"
            )


def _check_scale(scale: Tensor, name: str, owner: Sequence[int], count: int) -> None:
    if scale.dim() != 1 or scale.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be one-dimensional, float32 or float64, found {scale.dim()} dimensions of {scale.dtype}"
        )
    if len(owner) != count:
        raise ValueError(f"owner must name one modality per tensor in params, found {len(owner)} for {count}")
    for index, modality in enumerate(owner):
        if not -1 <= modality < scale.numel():
            raise ValueError(
                f"owner must lie in [-1, {scale.numel()}) for {scale.numel()} entries of {name}, found {modality} "
                f"at {index}"
            )
