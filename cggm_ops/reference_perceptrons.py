"""The definition of `perceptrons` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cggm_ops import checks_perceptrons as checks


def perceptrons(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    layers: Sequence[int],
    rectified: Sequence[int],
    target: Tensor,
    of_inputs: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the losses [M], the logits [M, B, C], and the sum's gradients: of inputs, if asked for, and parameters."""
    losses, logits = losses_and_logits(inputs, parameters, layers, rectified, target)
    counted = target != checks.IGNORED  # [B]
    truth = F.one_hot(target.clamp_min(0), logits.shape[2])  # [B, C]
    outer = ((logits.softmax(2) - truth) / counted.sum()).where(counted[:, None], 0.0)  # [M, B, C]
    input_gradients, parameter_gradients = [], []
    for x, network, rectify, gradient in zip(
        inputs, _networks(parameters, layers), rectified, outer, strict=True
    ):
        read = _read(x, network, rectify)
        found: list[Tensor] = []
        for layer in reversed(range(len(network))):
            found[:0] = gradient.T @ read[layer], gradient.sum(0)
            gradient = gradient @ network[layer][0]
            if layer or rectify:
                gradient = gradient.masked_fill(read[layer] <= 0, 0)
        input_gradients.append(gradient)
        parameter_gradients += found
    return losses, logits, (input_gradients if of_inputs else []) + parameter_gradients


def losses_and_logits(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    layers: Sequence[int],
    rectified: Sequence[int],
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the losses [M] and the logits [M, B, C], by operations that autograd can follow."""
    checks.check_perceptrons(inputs, parameters, layers, rectified)
    checks.check_target(target, inputs[0].shape[0], parameters[-1].shape[0])
    losses, logits = [], []
    for x, network, rectify in zip(inputs, _networks(parameters, layers), rectified, strict=True):
        logits.append(F.linear(_read(x, network, rectify)[-1], *network[-1]))
        losses.append(F.cross_entropy(logits[-1], target, ignore_index=checks.IGNORED))
    return torch.stack(losses), torch.stack(logits)


def _read(x: Tensor, network: Sequence[tuple[Tensor, Tensor]], rectify: int) -> list[Tensor]:
    """What each of a network's layers reads."""
    read = [x.relu() if rectify else x]
    for weight, bias in network[:-1]:
        read.append(F.linear(read[-1], weight, bias).relu())
    return read


def _networks(parameters: Sequence[Tensor], layers: Sequence[int]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Weights and biases, network by network."""
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    for count in layers:
        yield pairs[:count]
        pairs = pairs[count:]
