"""Public function for many small networks at once: their losses on one target, and through autograd their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cggm_ops import schema
from cggm_ops.reference_perceptrons import losses_and_logits


def perceptrons(
    inputs: Sequence[Tensor],
    parameters: Sequence[Sequence[Tensor]],
    target: Tensor,
    *,
    rectified: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross entropies of M multi-layer perceptrons on one target, in one call that finds the gradients, too.

    h_0 = x, or max(x, 0) where `rectified`; h_l = max(W_l h_{l−1} + b_l, 0); z = W_L h_{L−1} + b_L; and the loss is the
    mean of −log softmax(z)[target] over the rows whose target is not −100. For networks so small that twenty
    operations of autograd cost more than their arithmetic: a larger one is better off with a matrix library. Nothing
    is mutated.

    Args:
        inputs: x, M tensors [B, D_m], float32.
        parameters: W_1 [H, D_m], b_1 [H], W_2, b_2, ... of each of the M networks, float32; their last layers have
            equally many outputs C.
        target: [B], int64, classes in [0, C) or −100.
        rectified: whether the network begins with a rectifier, M times.

    Returns:
        The sum of the losses, 0-dimensional, differentiable in inputs and parameters; and outside of autograd the
        losses [M] and the logits [M, B, C]. The same bits at any number of threads.

    Raises:
        ValueError: shapes or dtypes that do not fit, a class out of range.

    Source:
        The unimodal classifiers of Guo et al., Classifier-guided Gradient Modulation for Enhanced Multimodal Learning
        (NeurIPS 2024, arXiv 2411.01409), without the attention layer.

    Example:
        >>> x, weight, bias = torch.zeros(4, 3), torch.ones(2, 3), torch.zeros(2)
        >>> target = torch.tensor([0, 1, 0, 1])
        >>> total, losses, logits = perceptrons([x, x], [[weight, bias]] * 2, target, rectified=[False, True])
        >>> total, losses, logits.shape
        (tensor(1.3863), tensor([0.6931, 0.6931]), torch.Size([2, 4, 2]))
    """
    layers = [len(network) // 2 for network in parameters]
    flat = [tensor for network in parameters for tensor in network]
    return _Perceptrons.apply(layers, [int(first) for first in rectified], target, *inputs, *flat)


class _Perceptrons(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: list[int], rectified: list[int], target: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(layers)
        of_inputs = any(ctx.needs_input_grad[3 : 3 + count])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            losses, logits, gradients = schema.perceptrons(
                tensors[:count], tensors[count:], layers, rectified, target, of_inputs
            )
        ctx.missing = 3 if of_inputs else 3 + count
        ctx.gradients, ctx.shapes = gradients, (layers, rectified)
        ctx.save_for_backward(target, *tensors)  # for a second derivative
        ctx.mark_non_differentiable(losses, logits)
        ctx.set_materialize_grads(False)
        return losses.sum(), losses, logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():  # create_graph=True: plain operations, which autograd follows once more
            return _differentiably(ctx, grad)
        return (None,) * ctx.missing + torch._foreach_mul(ctx.gradients, grad)


def _differentiably(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    target, *tensors = ctx.saved_tensors
    layers, rectified = ctx.shapes
    needed = ctx.needs_input_grad[3:]
    apart = [t.view_as(t) for t in tensors]  # one may occur twice, or depend on another
    inputs, parameters = apart[: len(layers)], apart[len(layers) :]
    losses, _ = losses_and_logits(inputs, parameters, layers, rectified, target)
    wanted = [t for t, need in zip(apart, needed, strict=True) if need]
    found = iter(torch.autograd.grad(losses.sum(), wanted, grad, create_graph=True))
    return (None, None, None, *(next(found) if need else None for need in needed))
