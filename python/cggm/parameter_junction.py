"""Where the gradients of the two losses meet at an encoder's parameters instead of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .application import accumulate_
from .masking import without


class ParameterJunction:
    """One encoder's junction: sends the two gradients through the encoder one by one, and combines what they make.

    The encoder's output is cut off the graph. When the one backward pass of the training loop arrives at the
    cut, two passes run through the encoder from there, and the combination is added to the parameters'
    gradients: whatever scales the loss scales both alike, and a micro-batch is a batch of its own.

    Args:
        weigh: the rule, as in `Policy.weigh`.
        name: the modality.
    """

    scaled = False  # coefficients act on what the parameters' gradients have become

    def __init__(self, weigh: Callable[[Tensor], Tensor], name: str) -> None:
        self.weigh = weigh
        self.name = name

    @torch.compiler.disable
    def split(
        self, output: Tensor, dropped: Tensor | None, encoder: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """The multimodal and the unimodal branch of the output of `encoder` for `inputs`, as `Junction.split`.

        Raises:
            RuntimeError: an input that a gradient should reach, which the cut would keep from it.
        """
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        if not output.requires_grad or not parameters:
            return without(output, dropped), output
        if any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            raise RuntimeError(
                f"encoder {self.name!r}: MMPareto() hands no gradient on to what lies before its input, but that wants "
                "one; name a module that includes it as the encoder, or use FeaturePareto()"
            )
        return _Cut.apply(output.detach().requires_grad_(), self.weigh, dropped, (output, parameters))


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        leaf: Tensor,
        weigh: Callable[[Tensor], Tensor],
        dropped: Tensor | None,
        behind: tuple[Tensor, list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        ctx.weigh, ctx.dropped, ctx.behind = weigh, dropped, behind
        ctx.set_materialize_grads(False)
        return without(leaf, dropped), leaf.view_as(leaf)

    @staticmethod
    def backward(
        ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None
    ) -> tuple[None, None, None, None]:
        output, parameters = ctx.behind
        if multimodal is not None and ctx.dropped is not None:
            multimodal = multimodal.masked_fill(ctx.dropped, 0)
        incoming = [gradient for gradient in (multimodal, unimodal) if gradient is not None]
        sets: list[list[Tensor]] = []
        for number, gradient in enumerate(incoming, 1):
            found = torch.autograd.grad(
                output, parameters, gradient, retain_graph=number < len(incoming), allow_unused=True
            )
            if number == 1:
                used = [parameter for parameter, g in zip(parameters, found, strict=True) if g is not None]
            sets.append([g for g in found if g is not None])
        if sets and used:
            if any(parameter.grad is None for parameter in used):
                sets[0] = _apart(sets[0], [*incoming, *(g for one in sets[1:] for g in one)])
            accumulate_(used, sets, ctx.weigh)
        return None, None, None, None


def _apart(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, copied where writing into one would write into something else, or where it has gaps."""
    seen = {other.untyped_storage().data_ptr() for other in others}
    result = []
    for gradient in gradients:
        storage = gradient.untyped_storage()
        whole = storage.nbytes() == gradient.numel() * gradient.element_size()
        own = whole and storage.data_ptr() not in seen
        result.append(gradient if own else gradient.clone(memory_format=torch.contiguous_format))
        seen.add(storage.data_ptr())
    return result
