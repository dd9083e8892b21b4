"""Validation for the implementation of `perceptrons` in Python; the same rules are in csrc/check_perceptrons.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100  # a target that counts for nothing, as in torch


def check_perceptrons(
    inputs: Sequence[Tensor], parameters: Sequence[Tensor], layers: Sequence[int], rectified: Sequence[int]
) -> None:
    """Raise a ValueError unless the inputs and the layers fit one another."""
    if any(count < 1 for count in layers):
        raise ValueError(f"layers must be positive, found {list(layers)}")
    if not len(inputs) == len(layers) == len(rectified) > 0 or len(parameters) != 2 * sum(layers):
        raise ValueError(
            "inputs, layers and rectified must have one entry per perceptron, and parameters a weight and a bias per "
            f"layer, found {len(inputs)}, {len(layers)}, {len(rectified)} and {len(parameters)}"
        )
    for name, tensors, dims in (
        ("inputs", inputs, [2] * len(inputs)),
        ("parameters", parameters, [2, 1] * sum(layers)),
    ):
        for index, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
            if tensor.ndim != dim or tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name}[{index}] must be a {dim}-dimensional float32 tensor (or float64), found {tensor.ndim} "
                    f"dimensions of {tensor.dtype}"
                )
    next_layer, outputs = 0, parameters[-1].shape[0]
    for index, (x, count) in enumerate(zip(inputs, layers, strict=True)):
        if x.shape[0] != inputs[0].shape[0]:
            raise ValueError(
                f"inputs[{index}] must have as many rows as inputs[0] ({inputs[0].shape[0]}), found {x.shape[0]}"
            )
        width = x.shape[1]
        for layer in range(next_layer, next_layer + count):
            weight, bias = parameters[2 * layer : 2 * layer + 2]
            if weight.shape[1] != width or bias.shape[0] != weight.shape[0]:
                raise ValueError(
                    f"parameters[{2 * layer}] and [{2 * layer + 1}] must be a weight [outputs, {width}] and a bias "
                    f"[outputs], found {list(weight.shape)} and {list(bias.shape)}"
                )
            width = weight.shape[0]
        if width != outputs:
            raise ValueError(f"perceptrons must have equally many outputs, found {outputs} and {width}")
        next_layer += count


def check_target(target: Tensor, rows: int, classes: int) -> None:
    """Raise a ValueError unless target holds a class per row, or −100; off the CPU torch itself looks at the values."""
    if target.ndim != 1 or target.dtype != torch.int64 or target.shape[0] != rows:
        raise ValueError(
            f"target must hold {rows} class indices, int64, found {list(target.shape)} of {target.dtype}"
        )
    if target.is_cpu and bool((((target < 0) | (target >= classes)) & (target != IGNORED)).any()):
        raise ValueError(
            f"target must lie in [0, {classes}), or be {IGNORED} to be ignored, found {target.unique()}"
        )
