"""The junction: where the multimodal and the unimodal gradient meet at an encoder's output.

An encoder's output `z` splits into two branches of equal value: `z_m` goes on into the user's fusion, `z_u` to
the unimodal classifier. In the one ordinary backward pass both gradients arrive here, scaled alike by whatever
loss scaling or accumulation does, and the policy says which single gradient enters the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Meet = Callable[[Tensor, "Tensor | None", Tensor], Tensor]


class Junction:
    """One pass through one encoder: the features for the unimodal classifier and the rule for backward.

    `coefficient` is filled in by `balance()`, between forward and backward; as long as it is None, the
    multimodal gradient passes unchanged.
    """

    __slots__ = ("coefficient", "features", "meet")

    def __init__(self, meet: Meet | None) -> None:
        self.meet = meet
        self.features: Tensor | None = None
        self.coefficient: Tensor | None = None

    def split(self, output: Tensor) -> Tensor:
        """Keep the unimodal branch as `features` and return the multimodal one.

        The multimodal branch is a copy of its own: an in-place activation in the fusion then changes
        neither the classifier's features nor an autograd view.
        """
        multimodal, self.features = _Split.apply(output, self)
        return multimodal

    def backward(self, multimodal: Tensor | None, unimodal: Tensor | None) -> Tensor | None:
        """The gradient that enters the encoder."""
        if self.meet is None or self.coefficient is None:
            return (
                multimodal if unimodal is None else unimodal if multimodal is None else multimodal + unimodal
            )
        if multimodal is None:  # the loss does not depend on this modality's fusion branch
            if unimodal is None:
                return None
            multimodal = torch.zeros_like(unimodal)
        return self.meet(multimodal, unimodal, self.coefficient)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, junction: Junction) -> tuple[Tensor, Tensor]:
        ctx.junction = junction
        ctx.set_materialize_grads(False)
        return output.clone(), output.view_as(output)

    @staticmethod
    def backward(ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.junction.backward(multimodal, unimodal), None
