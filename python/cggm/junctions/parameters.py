"""Where the gradients of the two losses meet at the encoders' parameters instead of their outputs."""

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
from .dropout import without

Weigh = Callable[[Tensor], Tensor]


class ParameterJunction:
    """One encoder's junction: cuts its output off the graph, and hands what arrives at the cut to the meeting.

    Args:
        meeting: combines the gradients, shared by all encoders.
        name: the modality.
    """

    scaled = False  # coefficients act on what the parameters' gradients have become

    def __init__(self, meeting: Meeting, name: str) -> None:
        self.meeting = meeting
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
        return _Cut.apply(output.detach().requires_grad_(), dropped, (self, output, parameters))


class Arrival(NamedTuple):
    """What one backward pass brings to one cut."""

    output: Tensor  # the encoder's, with the graph behind the cut
    gradients: list[Tensor]  # of the multimodal and the unimodal loss, or of the one that uses this encoder
    parameters: list[Tensor]  # the encoder's trainable ones


class Groups(dict[tuple[torch.device, int, int], dict[str, Arrival]]):
    """What has arrived in one backward pass, by what can be combined together."""


def _nothing() -> None:
    return None


class Meeting:
    """Sends the two gradients through all encoders one by one, and combines what they make of the parameters.

    Cuts only gather what arrives. At the end of the training loop's one backward pass, two passes run from there
    through all encoders together, since starting one costs as much as several small layers, and their combination
    is added to the parameters' gradients: whatever scales the loss scales both alike, and a micro-batch is a batch
    of its own.

    Args:
        weigh: the rule, as in `Policy.weigh`.
    """

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh
        self._task = -1  # the backward pass under way
        self._groups = (
            _nothing  # what has arrived in it; the pass itself holds on to that, and lets go if it fails
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_task": -1,
            "_groups": _nothing,
        }  # a graph can be neither copied nor pickled

    def add(self, name: str, arrival: Arrival) -> None:
        """Take in what arrived at a cut, to be combined at the end of this backward pass.

        Together go encoders on one device to which as many losses go back; an encoder that has run more than once
        makes gradients of its own each time.
        """
        task = torch._C._current_graph_task_id()
        groups = self._groups()
        if groups is None or task != self._task:
            groups = Groups()
            self._task, self._groups = task, weakref.ref(groups)
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._finish, groups))
        for run in count():
            group = groups.setdefault((arrival.output.device, len(arrival.gradients), run), {})
            if name not in group:
                group[name] = arrival
                return

    def _finish(self, groups: Groups) -> None:
        arrived = [list(group.values()) for group in groups.values()]
        groups.clear()
        for arrivals in arrived:
            self._combine(arrivals)

    @torch.no_grad()
    def _combine(self, arrivals: Sequence[Arrival]) -> None:
        outputs, gradients, owned = zip(*arrivals, strict=True)
        parameters = list(chain.from_iterable(owned))
        incoming = list(zip(*gradients, strict=True))  # of the one loss and of the other
        kept = torch._C._autograd._get_current_graph_task_keep_graph()  # by the training loop's retain_graph
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
            _accumulate_(trained, sets, self._weigh)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        leaf: Tensor,
        dropped: Tensor | None,
        behind: tuple[ParameterJunction, Tensor, list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        ctx.dropped, ctx.behind = dropped, behind
        ctx.set_materialize_grads(False)
        return without(leaf, dropped), leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, multimodal: Tensor | None, unimodal: Tensor | None) -> tuple[None, None, None]:
        junction, output, parameters = ctx.behind
        if multimodal is not None and ctx.dropped is not None:
            multimodal = multimodal.masked_fill(ctx.dropped, 0)
        gradients = [gradient for gradient in (multimodal, unimodal) if gradient is not None]
        if gradients:
            junction.meeting.add(junction.name, Arrival(output, gradients, parameters))
        return None, None, None


def _apart(gradients: Sequence[Tensor], taken: set[int]) -> list[Tensor]:
    """The gradients, copied where writing into one would write into something else, or where it has gaps.

    Args:
        gradients: to be written into.
        taken: addresses of what must stay; theirs are added.
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
    weigh: Weigh,
) -> None:
    """Add a weighted sum of gradient sets to the parameters' gradients: `grad_s ← grad_s + Σ_k w[s, k] g_k[s]`.

    Args:
        parameters: of M encoders; their `.grad` is mutated, and where it is None becomes the set's own tensor.
        sets: one set, which counts as it is, or two; each of M encoders' tensors. The first one is mutated.
        weigh: as `Policy.weigh`.
    """
    if len(sets) == 2:
        # in one go: an encoder with fewer tensors than another one is filled up with empty ones
        empty = next(chain.from_iterable(parameters)).new_empty(0)
        rows = [list(zip_longest(*one, fillvalue=empty)) for one in sets]  # [K][L][M]
        flat = [list(chain.from_iterable(one)) for one in rows]
        gram = segment_gram(flat).unflatten(0, (len(rows[0]), len(parameters)))  # [L, M, 2, 2]
        weights = weigh(gram)
        if weights.shape != gram.shape[:-1]:
            raise ValueError(
                f"policy: weigh() must return weights [S, M, 2] = {list(gram.shape[:-1])}, got {list(weights.shape)}"
            )
        segment_combine_(flat, weights.flatten(0, 1))
    pairs = list(zip(chain.from_iterable(parameters), chain.from_iterable(sets[0]), strict=True))
    present = [(parameter.grad, gradient) for parameter, gradient in pairs if parameter.grad is not None]
    if present:
        torch._foreach_add_(*zip(*present, strict=True))
    for parameter, gradient in pairs:
        if parameter.grad is None:
            parameter.grad = gradient
