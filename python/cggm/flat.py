"""All gradients of one dtype and device in one buffer, modality by modality."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cggm_ops.checks import is_dense

from .distributed import is_sharded
from .modalities import Modalities
from .replicas import ClassifierReplicas

_ALIGNMENT = 64  # bytes: a gradient begins where a cache line does


class Segment(NamedTuple):
    """One modality's part of a buffer, in the place of its parameters."""

    grad: Tensor  # [N], one-dimensional; gaps between gradients are zeros


class FlatGradients:
    """Keeps the gradients of a model in one buffer per dtype and device, of which every `p.grad` is a view.

    Backward makes gradients wherever it likes; `gather` moves those that are not views yet into the buffers, and
    leaves views. A parameter has its place in a buffer from its first gradient on. Where it has none this time,
    `p.grad` stays None and its place holds zeros.

    Args:
        model: the user's model with the unimodal classifiers, out of its wrappers.
        modalities: which parameter belongs to which.
        replicas: refuses where something else lays gradients out.

    Raises:
        ValueError: `fully_shard`, or DistributedDataParallel's own buffers.
    """

    def __init__(self, model: nn.Module, modalities: Modalities, replicas: ClassifierReplicas) -> None:
        replicas.check_gradients_free()
        self._model, self._modalities, self._replicas = model, modalities, replicas
        self._forget()

    def _forget(self) -> None:
        self.buffers: tuple[Tensor, ...] = ()
        self.segments: list[tuple[Segment, int]] = []  # with the indices of their modalities
        self._views: dict[Tensor, Tensor] = {}  # into the buffers, by parameter
        self._first: list[Tensor] = []  # view into each buffer
        self._known: tuple[Any, list[tuple[Tensor, int]]] = (None, [])

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_model", "_modalities", "_replicas")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()  # gradients of a copy are no views

    def backward_started(self) -> None:
        """Gather at the end of the backward pass that calls this, after what others do at its end."""
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: engine.queue_callback(self.gather))

    @torch.no_grad()
    def gather(self) -> None:
        """Make every gradient a view of its buffer.

        Raises:
            RuntimeError: a sparse gradient, or what `replicas` refuses; every gradient is left as it was.
        """
        self._replicas.check_gradients_free()
        if any(_memory(view) != _memory(b) for view, b in zip(self._first, self.buffers, strict=True)):
            self._forget()  # model.to(...) has moved the views' contents elsewhere
        parameters = [p for p, _ in self._parameters()]
        moved = [p for p in parameters if p.grad is not None and p.grad is not self._views.get(p)]
        for parameter in moved:
            _check(parameter.grad)
        if any(not _fits(p.grad, self._views.get(p)) for p in moved):
            self._lay_out()
            moved = [p for p in parameters if p.grad is not None]
        if moved:
            torch._foreach_copy_([self._views[p] for p in moved], [p.grad for p in moved])
            for parameter in moved:
                parameter.grad = self._views[parameter]
        missing = [view for p, view in self._views.items() if p.grad is None]
        if missing:
            torch._foreach_zero_(missing)

    def _parameters(self) -> list[tuple[Tensor, int]]:
        """The model's parameters with their modalities' indices, in order, the rest of the model last."""
        owned = self._modalities.owned()
        if self._known[0] is not owned:
            inside = {p for p, _ in owned}
            rest = [(p, len(self._modalities.names)) for p in self._model.parameters() if p not in inside]
            self._known = (owned, [*owned, *rest])
        return self._known[1]

    def _lay_out(self) -> None:
        """Make buffers for all parameters that have, or had, a gradient."""
        places: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, int, Tensor]]] = {}
        for parameter, owner in self._parameters():
            like = self._views.get(parameter) if parameter.grad is None else parameter.grad
            if like is not None:
                places.setdefault((like.dtype, like.device), []).append((parameter, owner, like))
        self.segments, buffers, views, firsts = [], [], {}, []
        for (dtype, device), members in places.items():
            room = _ALIGNMENT // dtype.itemsize
            spans = [-(-like.numel() // room) * room for _, _, like in members]
            buffer, offset = torch.zeros(sum(spans), dtype=dtype, device=device), 0
            buffers.append(buffer)
            firsts.append(members[0][0])
            for owner, run in groupby(zip(members, spans, strict=True), key=lambda one: one[0][1]):
                start = offset
                for (parameter, _, like), span in run:
                    views[parameter] = _view(buffer, offset, like)
                    offset += span
                if owner < len(self._modalities.names):
                    self.segments.append((Segment(buffer[start:offset]), owner))
        self.buffers, self._views, self._first = tuple(buffers), views, [views[p] for p in firsts]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _view(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    """A view of the shape of `like`, with its order of elements where that leaves no gaps."""
    if is_dense(like):
        return buffer.as_strided(like.shape, like.stride(), offset)
    return buffer[offset : offset + like.numel()].view(like.shape)


def _fits(gradient: Tensor, view: Tensor | None) -> bool:
    if view is None:
        return False
    return (gradient.shape, gradient.dtype, gradient.device) == (view.shape, view.dtype, view.device)


def _check(gradient: Tensor) -> None:
    if gradient.layout is not torch.strided or is_sharded(gradient):
        raise RuntimeError(
            f"flatten=True lays out whole dense gradients, and one of shape {list(gradient.shape)} is a "
            f"{type(gradient).__name__} of {gradient.layout}; make embeddings with sparse=False, or leave flatten out"
        )
