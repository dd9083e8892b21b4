"""Combines the two gradients at the encoders' parameters instead of their outputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, count, islice, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cggm_ops import segment_combine_, segment_gram

from ..distributed.collectives import average_over_ranks_
from ..torch_private import at_end_of_backward, backward_id, disable_dynamo, foreach_add_, graph_is_kept
from .dropout import zero_dropped

Weights = Callable[[Tensor], Tensor]  # as Combiner.combination_weights


class ParameterJunction:
    """One encoder's junction: a boundary after its output that sends gradients to the combiner of all encoders.

    Args:
        combiner: combines the gradients, shared by all encoders.
        name: the modality.
    """

    scaled = weighs_unimodal = measured = False  # coefficients scale the parameters' combined gradients
    acts, takes_others = True, False
    fill = 0.0  # what stands in for dropped features

    def __init__(self, combiner: ParameterCombiner, name: str) -> None:
        self.combiner = combiner
        self.name = name

    def pass_on(self, tensor: Tensor, dropped: Tensor | None) -> Tensor:
        """Pass on another output of the encoder. The model must not use it; the first step checks that."""
        return tensor.view_as(tensor)

    @disable_dynamo
    def split(
        self, output: Tensor, dropped: Tensor | None, encoder: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """The multimodal and the unimodal branch of the output of `encoder` for `inputs`, as `Junction.split`.

        Raises:
            RuntimeError: an input needs a gradient, which the boundary would block.
        """
        parameters = [p for p in encoder.parameters() if p.requires_grad]
        if not output.requires_grad or not parameters:
            return zero_dropped(output, dropped, self.fill), output
        if any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            raise RuntimeError(
                f"encoder {self.name!r}: MMPareto() hands no gradient on to what lies before its input, but that wants "
                "one; name a module that includes it as the encoder, or use FeaturePareto()"
            )
        return GradientBoundary.apply(output.detach().requires_grad_(), dropped, (self, output, parameters))


class BoundaryGradients(NamedTuple):
    """The gradients that one backward pass brings to the boundary of one encoder."""

    output: Tensor  # the encoder's output, with its graph
    gradients: list[Tensor]  # of the multimodal and the unimodal loss, or of the one that uses this encoder
    parameters: list[Tensor]  # the encoder's trainable ones


class Groups(dict[tuple[torch.device, int, int], dict[str, BoundaryGradients]]):
    """The boundary gradients of one backward pass, in groups that can be combined together."""


def _nothing() -> None:
    return None


class ParameterCombiner:
    """Backpropagates both gradients through all encoders, and adds their combination to the parameters' gradients.

    Boundaries only collect gradients. At the end of the training loop's backward pass, two passes run from the
    boundaries through all encoders at once, because starting a pass costs as much as several small layers. Loss scaling
    scales both gradients equally. Each micro-batch is combined separately.

    Args:
        weights: as `Combiner.combination_weights`.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._task = -1  # the current backward pass
        self._groups = (
            _nothing  # a weak reference: the backward pass holds the gradients, and drops them if it fails
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_task": -1,
            "_groups": _nothing,
        }  # a graph can be neither copied nor pickled

    def add(self, name: str, gradients: BoundaryGradients) -> None:
        """Collect the gradients of one boundary, to combine them at the end of this backward pass.

        Encoders on the same device with the same number of gradients are combined together. An encoder that ran several
        times is combined once per run.
        """
        task = backward_id()
        groups = self._groups()
        if groups is None or task != self._task:
            groups = Groups()
            self._task, self._groups = task, weakref.ref(groups)
            at_end_of_backward(partial(self._finish, groups))
        for run in count():
            group = groups.setdefault((gradients.output.device, len(gradients.gradients), run), {})
            if name not in group:
                group[name] = gradients
                return

    def _finish(self, groups: Groups) -> None:
        collected = [list(group.values()) for group in groups.values()]
        groups.clear()
        for gradients in collected:
            self._combine(gradients)

    @torch.no_grad()
    def _combine(self, collected: Sequence[BoundaryGradients]) -> None:
        outputs, gradients, owned = zip(*collected, strict=True)
        parameters = list(chain.from_iterable(owned))
        incoming = list(zip(*gradients, strict=True))  # of the one loss and of the other
        kept = graph_is_kept()  # by the training loop's retain_graph
        sets: list[list[list[Tensor]]] = []
        for number, entering in enumerate(incoming, 1):
            again = kept or number < len(incoming)
            found = torch.autograd.grad(outputs, parameters, entering, retain_graph=again, allow_unused=True)
            each = iter(found)
            sets.append([[g for g in islice(each, len(own)) if g is not None] for own in owned])
        used = iter(found)
        trained = [[p for p in own if next(used) is not None] for own in owned]
        if any(trained):
            taken = {g.untyped_storage().data_ptr() for g in chain(*incoming, *chain(*sets[1:]))}
            sets[0] = [_apart(own, taken) for own in sets[0]]
            for one in sets:  # nothing else does it for gradients that are made here
                average_over_ranks_(list(chain.from_iterable(one)))
            _accumulate_(trained, sets, self._weights)


class GradientBoundary(torch.autograd.Function):
    """Splits a leaf into two branches, and sends their gradients to the junction's combiner."""

    @staticmethod
    def forward(
        ctx: Any,
        leaf: Tensor,
        dropped: Tensor | None,
        behind: tuple[ParameterJunction, Tensor, list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """The multimodal branch, zero where `dropped`, and the unimodal branch of the leaf."""
        ctx.dropped, ctx.behind = dropped, behind
        ctx.set_materialize_grads(False)
        return zero_dropped(leaf, dropped, behind[0].fill), leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None) -> tuple[None, None, None]:
        """Collect the two gradients; the leaf itself gets no gradient."""
        junction, output, parameters = ctx.behind
        if multimodal is not None and ctx.dropped is not None:
            multimodal = multimodal.masked_fill(ctx.dropped, 0)
        gradients = [gradient for gradient in (multimodal, unimodal) if gradient is not None]
        if gradients:
            junction.combiner.add(junction.name, BoundaryGradients(output, gradients, parameters))
        return None, None, None


def _apart(gradients: Sequence[Tensor], taken: set[int]) -> list[Tensor]:
    """The gradients, with copies of those that share memory with another tensor or have gaps in memory.

    Args:
        gradients: gradients that the caller will write into.
        taken: addresses of memory that must not change; the gradients' addresses are added.
    """
    result = []
    for gradient in gradients:
        storage = gradient.untyped_storage()
        address = storage.data_ptr()
        own = address not in taken and storage.nbytes() == gradient.nbytes
        result.append(gradient if own else gradient.clone(memory_format=torch.contiguous_format))
        taken.add(address)
    return result


def _accumulate_(
    parameters: Sequence[Sequence[Tensor]],
    sets: Sequence[Sequence[Sequence[Tensor]]],
    weights: Weights,
) -> None:
    """Add a weighted sum of gradient sets to the parameters' gradients: `grad_s ← grad_s + Σ_k w[s, k] g_k[s]`.

    Args:
        parameters: of M encoders; their `.grad` is mutated, and where it is None becomes the set's own tensor.
        sets: one set, which counts as it is, or two; each of M encoders' tensors. The first one is mutated.
        weights: as `Combiner.combination_weights`.
    """
    if len(sets) == 2:
        # in one go: an encoder with fewer tensors than another one is filled up with empty ones
        empty = next(chain.from_iterable(parameters)).new_empty(0)
        rows = [list(zip_longest(*one, fillvalue=empty)) for one in sets]  # [K][L][M]
        flat = [list(chain.from_iterable(one)) for one in rows]
        gram = segment_gram(flat).unflatten(0, (len(rows[0]), len(parameters)))  # [L, M, 2, 2]
        weight = weights(gram)
        if weight.shape != gram.shape[:-1]:
            raise ValueError(
                f"policy: combination_weights() must return [S, M, 2] = {list(gram.shape[:-1])}, "
                f"got {list(weight.shape)}"
            )
        segment_combine_(flat, weight.flatten(0, 1))
    pairs = list(zip(chain.from_iterable(parameters), chain.from_iterable(sets[0]), strict=True))
    present = [(parameter.grad, gradient) for parameter, gradient in pairs if parameter.grad is not None]
    if present:
        foreach_add_(*zip(*present, strict=True))
    for parameter, gradient in pairs:
        if parameter.grad is None:
            parameter.grad = gradient
