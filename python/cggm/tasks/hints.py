"""What is wrong with a target of `Classification`, and which task or classifier it wants instead."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import INDICES

_ONE = (
    'one output per sample is no classification: pass task="regression" for real numbers, task="multi-label" with a '
    "float target [B, 1] for yes or no, or give the head one output per class"
)
_DENSE = (
    'pass task="segmentation" with class indices [B, ...] for a class per pixel, task="multi-label" with a target of '
    'the output\'s shape for yes or no per pixel, or task="regression" for real numbers'
)


def check_form(output: Tensor, target: Tensor) -> None:
    """Raise a ValueError, with a hint of the right choice, unless the target can hold classes of these logits.

    Args:
        output: logits `[B, C]` or `[B, T, C]`.
        target: class indices of the shape without the last axis, or floats of the output's shape.
    """
    same = target.shape == output.shape and target.is_floating_point()
    indices = output.ndim > 1 and target.shape == output.shape[:-1] and target.dtype in INDICES
    if output.ndim > 1 and output.shape[-1] == 1 and (same or (indices and len(output) > 1)):
        raise ValueError(f"target {list(target.shape)} for an output {list(output.shape)}: {_ONE}")
    if same and output.ndim > 3:
        raise ValueError(
            f"target {list(target.shape)} of {target.dtype} for an output of {output.ndim} axes is taken for no class "
            f"probabilities: {_DENSE}"
        )
    if not indices and not (same and output.ndim > 1):
        hint = _hint(output, target)
        raise ValueError(
            f"target must hold class indices {list(output.shape[:-1])} (int64 or uint8) or class probabilities "
            f"{list(output.shape)} (floating) for logits with the classes last, got {list(target.shape)} of "
            f"{target.dtype}" + (f"; {hint}" if hint else "")
        )


def _hint(output: Tensor, target: Tensor) -> str:
    """What to do about a target of another form; empty where nothing is known."""
    ends = list(output.shape[-1:])
    if ends == [1]:
        return _ONE
    if target.is_floating_point():
        return (
            'pass task="regression" where it holds real numbers, target.long() where it holds class indices'
            if target.ndim < 3
            else _DENSE
        )
    if target.shape == output.shape:
        return 'pass task="multi-label" where it holds 0 or 1 for each label'
    if target.ndim == 2 and target.shape[1] == 1:
        return "pass target.squeeze(1)"
    if target.ndim == 1 and output.ndim > 2:
        return (
            "this classifier puts out a class per position, as the head is a convolution or the classifier does not "
            "average: pass Encoder(..., classifier=UnimodalClassifier(width, nn.Linear(hidden, classes))), which "
            "averages over the positions"
        )
    if target.ndim == 2 and output.ndim == 2:
        return (
            "for a class per token pass Encoder(..., classifier=nn.Linear(width, classes)): the default classifier "
            "averages over the positions, a module of your own does not"
        )
    return _DENSE if target.ndim > 2 else ""


@torch.no_grad()
def check_probabilities(target: Tensor) -> None:
    """Raise a ValueError unless every row of a float target holds class probabilities; waits for the device.

    Args:
        target: `[B, C]` or `[B, T, C]`; NaN is refused.
    """
    if not target.numel():
        return
    rows = target.double()
    found = torch.stack([rows.min(), rows.max(), (rows.sum(-1) - 1).abs().max()]).tolist()
    low, high, off = found
    if low >= 0 and off <= 1e-3:
        return
    labels = low >= 0 and high <= 1
    what = 'task="multi-label"' if labels else 'task="regression"'
    why = "labels, or scores of labels, in [0, 1]" if labels else "real numbers"
    raise ValueError(
        f"target {list(target.shape)} of {target.dtype} must hold class probabilities, >= 0 and of sum 1 in each row, "
        f'for task="classification", the default; it holds numbers from {low:.4g} to {high:.4g}, and a row\'s sum is '
        f"{off:.4g} away from 1. These look like {why}: pass {what}, or a Task of your own"
    )
