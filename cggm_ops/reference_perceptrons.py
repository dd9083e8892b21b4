"""The definition of `perceptrons` and of its backward in plain PyTorch."""

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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses [M], the logits [M, B, C], and all that the backward reads, in the order that it does."""
    checks.check_perceptrons(inputs, parameters, layers, rectified)
    checks.check_target(target, inputs[0].shape[0], parameters[-1].shape[0])
    losses, logits, saved = [], [], []
    for x, network, rectify in zip(inputs, _networks(parameters, layers), rectified, strict=True):
        if rectify:
            x = x.relu()
            saved.append(x)
        for weight, bias in network[:-1]:
            x = F.linear(x, weight, bias).relu()
            saved.append(x)
        logits.append(F.linear(x, *network[-1]))
        losses.append(F.cross_entropy(logits[-1], target, ignore_index=checks.IGNORED))
        counted = target != checks.IGNORED  # [B]
        gradient = logits[-1].softmax(1) - F.one_hot(target.clamp_min(0), logits[-1].shape[1])
        saved.append((gradient / counted.sum()).where(counted[:, None], 0.0))
    return torch.stack(losses), torch.stack(logits), torch.cat([part.flatten() for part in saved])


def perceptrons_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    layers: Sequence[int],
    rectified: Sequence[int],
    saved: Tensor,
    of_inputs: bool,
) -> list[Tensor]:
    """Return the gradients of the losses' sum with respect to the inputs, if asked for, and to the parameters."""
    checks.check_perceptrons(inputs, parameters, layers, rectified)
    checks.check_saved(grad, inputs, parameters, rectified, saved)
    ahead, input_gradients, parameter_gradients = 0, [], []

    def take(width: int) -> Tensor:
        nonlocal ahead
        ahead += rows * width
        return saved[ahead - rows * width : ahead].view(rows, width)

    rows = inputs[0].shape[0]
    for m, network in enumerate(_networks(parameters, layers)):
        read = [take(inputs[m].shape[1]) if rectified[m] else inputs[m]]  # what each layer has read
        read += [take(bias.shape[0]) for _, bias in network[:-1]]
        gradient = take(network[-1][1].shape[0]) * grad
        found: list[Tensor] = []
        for layer in reversed(range(len(network))):
            found[:0] = gradient.T @ read[layer], gradient.sum(0)
            gradient = gradient @ network[layer][0]
            if layer or rectified[m]:
                gradient = gradient.masked_fill(read[layer] <= 0, 0)
        input_gradients.append(gradient)
        parameter_gradients += found
    return (input_gradients if of_inputs else []) + parameter_gradients


def _networks(parameters: Sequence[Tensor], layers: Sequence[int]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Weights and biases, network by network."""
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    for count in layers:
        yield pairs[:count]
        pairs = pairs[count:]
