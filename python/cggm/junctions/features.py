"""The junction: where the multimodal and the unimodal gradient meet at an encoder's output.

An encoder's output `z` splits into two branches of equal value: `z_m` goes on into the user's fusion, `z_u` to
the unimodal classifier. In the one ordinary backward pass both gradients arrive here, scaled alike by whatever
loss scaling or accumulation does, and the policy says which single gradient enters the encoder.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..policies.base import Application, Policy
from .dropout import without
from .parameters import Meeting, ParameterJunction

Meet = Callable[[Tensor, "Tensor | None"], Tensor]

_numbers = itertools.count()
_junctions: weakref.WeakValueDictionary[int, Junction] = weakref.WeakValueDictionary()


class Junction:
    """One encoder's junction: the policy's rule, and the coefficient that `balance()` finds before each backward.

    Args:
        meet: the rule, as in `Policy.meet`; None for the plain sum.
        scaled: whether the coefficient multiplies here what the rule returns.
    """

    def __init__(self, meet: Meet | None, scaled: bool) -> None:
        self.meet = meet
        self.scaled = scaled
        self._coefficient: Tensor | None = None
        self._register()

    def _register(self) -> None:
        self._number = next(_numbers)
        _junctions[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coefficient": None}  # a view of what pickling would make a copy of

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()  # a copy is a junction of its own

    def split(
        self, output: Tensor, dropped: Tensor | None, encoder: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """The multimodal and the unimodal branch of the output of `encoder` for `inputs`.

        The multimodal branch is a copy, zero in the samples that have `dropped` this modality: an in-place activation
        in the fusion then changes neither the classifier's features nor an autograd view.
        """
        if self.meet is None and not self.scaled and (dropped is None or not _saved_tensors_are_exchanged()):
            return without(output, dropped), output  # autograd adds the two gradients up by itself
        return _Split.apply(output, self, dropped)

    def read(self, coefficient: Tensor) -> None:
        """Take the coefficient from this 0-dimensional tensor, whatever it holds when a backward pass comes by."""
        self._coefficient = coefficient

    def coefficient(self, like: Tensor) -> Tensor:
        """The coefficient now, on the device of `like`; 1 before there is one."""
        if self._coefficient is None:
            return like.new_ones((), dtype=torch.float32)
        return self._coefficient.to(like.device)

    def backward(self, multimodal: Tensor | None, unimodal: Tensor | None) -> Tensor | None:
        """The gradient that enters the encoder; None stands for a branch that no loss has used."""
        if multimodal is None and unimodal is None:
            return None
        gradient = self._met(multimodal, unimodal)
        if not self.scaled:
            return gradient
        if torch.compiler.is_compiling():  # tracing would freeze the value: look it up when the graph runs
            return gradient * _coefficient_of(gradient, self._number).to(gradient.dtype)
        return gradient * self.coefficient(gradient).to(gradient.dtype)

    def _met(self, multimodal: Tensor | None, unimodal: Tensor | None) -> Tensor:
        if self.meet is not None:
            return self.meet(torch.zeros_like(unimodal) if multimodal is None else multimodal, unimodal)
        if multimodal is None or unimodal is None:
            return unimodal if multimodal is None else multimodal
        return multimodal + unimodal


def make_junctions(
    policy: Policy, application: Application, names: Sequence[str]
) -> list[Junction] | list[ParameterJunction]:
    """The modalities' junctions with the policy's rule, scaling at the features where its coefficients act there."""
    if policy.meets_at == "features":
        scaled = application == "feature" and "coefficients" in policy.places
        return [Junction(None if policy.adds else policy.meet, scaled=scaled) for _ in names]
    meeting = Meeting(policy.weigh)
    return [ParameterJunction(meeting, name) for name in names]


def _saved_tensors_are_exchanged() -> bool:
    """Whether something repacks what autograd saves: checkpointing would bring back another pass's draw."""
    return torch.compiler.is_compiling() or bool(torch._C._autograd._top_saved_tensors_default_hooks(False))


@torch.library.custom_op("cggm::coefficient_of", mutates_args=())
def _coefficient_of(like: Tensor, number: int) -> Tensor:
    return _junctions[number].coefficient(like).clone()


@_coefficient_of.register_fake
def _(like: Tensor, number: int) -> Tensor:
    return like.new_empty((), dtype=torch.float32)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, junction: Junction, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # An attribute instead of a saved tensor: recomputation cannot exchange it.
        ctx.junction, ctx.dropped = junction, dropped
        ctx.set_materialize_grads(False)
        return without(output, dropped), output.view_as(output)

    @staticmethod
    def backward(
        ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if multimodal is not None and ctx.dropped is not None:
            multimodal = multimodal.masked_fill(ctx.dropped, 0)
        return ctx.junction.backward(multimodal, unimodal), None, None
