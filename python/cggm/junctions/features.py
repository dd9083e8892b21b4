"""The junction combines the multimodal and the unimodal gradient at an encoder's output.

An encoder's output `z` splits into two branches of equal value: `z_m` feeds the user's fusion, `z_u` the unimodal
classifier. One ordinary backward pass brings both gradients here, with the same loss scale, and the combiner merges
them into the gradient that enters the encoder.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..policies.plan import Plan
from ..torch_private import saved_tensors_are_exchanged
from .dropout import zero_dropped
from .parameters import ParameterCombiner, ParameterJunction

Combine = Callable[..., Tensor]

_numbers = itertools.count()
_junctions: weakref.WeakValueDictionary[int, Junction] = weakref.WeakValueDictionary()


class Junction:
    """One encoder's junction: combines the two gradients and applies the coefficient from `balance()`.

    Args:
        combine: like `Combiner.combine`; None for the plain sum.
        scaled: whether to multiply the result of `combine` by the coefficient.
        weighs_unimodal: whether to pass a weight for the unimodal gradient to `combine` as its third argument.
        measured: whether to sum the squared norms of the multimodal and the combined gradient.
    """

    takes_others = True  # several outputs of one encoder may pass
    fill = 0.0  # what stands in for dropped features

    def __init__(
        self, combine: Combine | None, *, scaled: bool, weighs_unimodal: bool = False, measured: bool = False
    ) -> None:
        self.active = True  # False while the wrapper pauses, and the classifiers see detached features
        self.measured = measured
        self.combine = combine
        self.scaled = scaled
        self.weighs_unimodal = weighs_unimodal
        self._coefficient: Tensor | None = None
        self._unimodal_weight: Tensor | None = None
        self._squares: Tensor | None = None
        self._gram: Tensor | None = None
        self._register()

    def _register(self) -> None:
        self._number = next(_numbers)
        _junctions[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        # pickling would turn these views into copies
        views = ("_coefficient", "_unimodal_weight", "_squares", "_gram")
        return {**self.__dict__, **dict.fromkeys(views)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()  # a copy is a separate junction

    def split(
        self, output: Tensor, dropped: Tensor | None, encoder: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """The multimodal and the unimodal branch of the output of `encoder` for `inputs`.

        The multimodal branch is a copy, with zeros for samples that lost this modality (`dropped`). So an in-place
        activation in the fusion changes neither the classifier's features nor an autograd view.
        """
        if not self.acts and (dropped is None or not saved_tensors_are_exchanged()):
            return zero_dropped(
                output, dropped, self.fill
            ), output  # autograd adds the two gradients up by itself
        return _Split.apply(output, self, dropped)

    @property
    def acts(self) -> bool:
        """Whether the junction changes the plain sum of both gradients, or records it."""
        return self.combine is not None or self.scaled or self._gram is not None

    def pass_on(self, tensor: Tensor, dropped: Tensor | None) -> Tensor:
        """Pass on another output of the encoder, which no classifier reads, like the multimodal branch of `split`."""
        if self.acts:
            return _PassOn.apply(tensor, self, dropped)
        return tensor.view_as(tensor) if dropped is None else zero_dropped(tensor, dropped, self.fill)

    def backward_other(self, multimodal: Tensor) -> Tensor:
        """The gradient that enters the encoder at another output: combined without a unimodal gradient."""
        combines = self.combine is not None and self.active
        return self.backward(multimodal, torch.zeros_like(multimodal) if combines else None)

    def read(self, coefficient: Tensor) -> None:
        """Use this 0-dimensional tensor as the coefficient; every backward pass reads its current value."""
        self._coefficient = coefficient

    def read_unimodal_weight(self, weight: Tensor) -> None:
        """Use this 0-dimensional tensor as the weight of the unimodal gradient, like `read`."""
        self._unimodal_weight = weight

    def measure_into(self, squares: Tensor) -> None:
        """Add the squared norms of the multimodal and the combined gradient to this tensor `[2]`."""
        self._squares = squares

    def record_into(self, gram: Tensor | None) -> None:
        """Add the dot products of the multimodal, unimodal and combined gradient to this `[3, 3]`; None to stop."""
        self._gram = gram

    def measure(self, multimodal: Tensor, unimodal: Tensor, combined: Tensor) -> None:
        """Add the squared norms, or the dot products, of one backward pass."""
        if self._squares is not None:
            wide = torch.promote_types(combined.dtype, torch.float32)
            norms = [torch.linalg.vector_norm(g.detach(), dtype=wide) for g in (multimodal, combined)]
            self._squares.add_(torch.stack(norms).square().to(self._squares.device))
        if self._gram is not None:
            rows = torch.stack(
                [g.detach().flatten().float() for g in (multimodal, unimodal, combined)]
            )  # [3, N]
            self._gram.add_((rows @ rows.T).to(self._gram.device))

    def coefficient(self, like: Tensor) -> Tensor:
        """The current coefficient on the device of `like`; 1 if none is set."""
        return _on_device(self._coefficient, like)

    def unimodal_weight(self, like: Tensor) -> Tensor:
        """The current weight of the unimodal gradient on the device of `like`; 1 if none is set."""
        return _on_device(self._unimodal_weight, like)

    def backward(self, multimodal: Tensor | None, unimodal: Tensor | None) -> Tensor | None:
        """The gradient that enters the encoder; an argument is None if no loss used that branch."""
        if multimodal is None and unimodal is None:
            return None
        gradient = self._combined(multimodal, unimodal)
        if not self.scaled:
            return gradient
        if torch.compiler.is_compiling():  # tracing would freeze the value: look it up when the graph runs
            return gradient * _coefficient_of(gradient, self._number).to(gradient.dtype)
        return gradient * self.coefficient(gradient).to(gradient.dtype)

    def _combined(self, multimodal: Tensor | None, unimodal: Tensor | None) -> Tensor:
        if unimodal is None:  # the classifier saw detached features
            return multimodal  # type: ignore[return-value]
        if self.combine is None and (multimodal is None or self._gram is None):
            return unimodal if multimodal is None else multimodal + unimodal
        multimodal = torch.zeros_like(unimodal) if multimodal is None else multimodal
        combined = multimodal + unimodal if self.combine is None else self._combine(multimodal, unimodal)
        measured = self.measured or self._gram is not None
        if measured and torch.compiler.is_compiling():
            return _measured(multimodal, unimodal, combined, self._number)
        if measured:
            self.measure(multimodal, unimodal, combined)
        return combined

    def _combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        tracing = torch.compiler.is_compiling()
        weight: tuple[Tensor, ...] = ()
        if self.weighs_unimodal:
            traced = tracing and _unimodal_weight_of(unimodal, self._number)
            weight = (traced if tracing else self.unimodal_weight(unimodal),)
        return self.combine(multimodal, unimodal, *weight)


def _on_device(value: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones((), dtype=torch.float32) if value is None else value.to(like.device)


def make_junctions(plan: Plan, names: Sequence[str]) -> list[Junction] | list[ParameterJunction]:
    """One junction per modality, set up to combine and scale gradients according to the plan."""
    combiner = plan.combiner
    if plan.combines_at_parameters:
        shared = ParameterCombiner(combiner.combination_weights)
        return _filled([ParameterJunction(shared, name) for name in names], plan)
    combine = None if combiner is None or plan.adds_gradients else combiner.combine
    scaled = plan.scale_at == "feature"
    options = {"scaled": scaled, "weighs_unimodal": plan.weighs_unimodal, "measured": plan.bounds_step}
    return _filled([Junction(combine, **options) for _ in names], plan)


def _filled(junctions: list[Any], plan: Plan) -> list[Any]:
    for junction in junctions:
        junction.fill = 0.0 if plan.dropout is None else plan.dropout.fill
    return junctions


@torch.library.custom_op("cggm::coefficient_of", mutates_args=())
def _coefficient_of(like: Tensor, number: int) -> Tensor:
    return _junctions[number].coefficient(like).clone()


@torch.library.custom_op("cggm::unimodal_weight_of", mutates_args=())
def _unimodal_weight_of(like: Tensor, number: int) -> Tensor:
    return _junctions[number].unimodal_weight(like).clone()


@_coefficient_of.register_fake
@_unimodal_weight_of.register_fake
def _(like: Tensor, number: int) -> Tensor:
    return like.new_empty((), dtype=torch.float32)


@torch.library.custom_op("cggm::measured", mutates_args=())
def _measured(multimodal: Tensor, unimodal: Tensor, combined: Tensor, number: int) -> Tensor:
    """The combined gradient; in a traced backward pass, this call also measures it."""
    _junctions[number].measure(multimodal, unimodal, combined)
    return combined.clone()


@_measured.register_fake
def _(multimodal: Tensor, unimodal: Tensor, combined: Tensor, number: int) -> Tensor:
    return torch.empty_like(combined)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, junction: Junction, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # An attribute instead of a saved tensor: recomputation cannot exchange it.
        ctx.junction, ctx.dropped = junction, dropped
        ctx.set_materialize_grads(False)
        # AOTAutograd makes views of a tensor that the graph puts out, too, anew outside the graph: past this function.
        unimodal = output.clone() if torch.compiler.is_compiling() else output.view_as(output)
        return zero_dropped(output, dropped, junction.fill), unimodal

    @staticmethod
    def backward(
        ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if multimodal is not None and ctx.dropped is not None:
            multimodal = multimodal.masked_fill(ctx.dropped, 0)
        return ctx.junction.backward(multimodal, unimodal), None, None


class _PassOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, junction: Junction, dropped: Tensor | None) -> Tensor:
        ctx.junction, ctx.dropped = junction, dropped
        return zero_dropped(tensor, dropped, junction.fill)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient if ctx.dropped is None else gradient.masked_fill(ctx.dropped, 0)
        return ctx.junction.backward_other(gradient), None, None
