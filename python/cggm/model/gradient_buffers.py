"""All gradients of one dtype and device in one buffer, modality by modality."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cggm_ops.checks import is_dense

from ..distributed.collectives import is_sharded
from ..distributed.context import DistributedContext
from ..torch_private import at_end_of_backward, foreach_copy_, foreach_zero_
from .encoders import EncoderSet

_ALIGNMENT = 64  # bytes: each gradient starts at a cache line


class GradientBuffers:
    """Keeps a model's gradients in one buffer per dtype and device; every `p.grad` is a view of a buffer.

    Backward may allocate gradients anywhere. `gather` moves those that are not views yet into the buffers, and makes
    them views. Every trainable parameter has a place. If it has no gradient, `p.grad` stays None and its place holds
    zeros, so all processes that train one model have the same buffers.

    Args:
        model: the user's model with the unimodal classifiers, without its wrappers.
        encoders: map parameters to modalities.
        context: raises if something else manages the gradients' memory.

    Raises:
        ValueError: `fully_shard` or DistributedDataParallel already manages the gradients' memory.
    """

    def __init__(self, model: nn.Module, encoders: EncoderSet, context: DistributedContext) -> None:
        context.check_gradients_free()
        self._model, self._encoders, self._context = model, encoders, context
        self._forget()

    def _forget(self) -> None:
        self._buffers: tuple[Tensor, ...] = ()
        self._places: dict[Tensor, tuple[Tensor, int]] = {}  # parameter -> view of a buffer, its address
        self._gaps: list[Tensor] = []  # padding between gradients, for alignment
        self._known: tuple[Any, list[Tensor]] = (None, [])

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_model", "_encoders", "_context")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()  # a copy's gradients are not views

    def backward_started(self) -> None:
        """Gather at the end of the current backward pass, after all callbacks queued before."""
        if not torch.compiler.is_compiling():  # which has no such queue: the step gathers
            at_end_of_backward(lambda: at_end_of_backward(self._gather_unless_recorded))

    def _gather_unless_recorded(self) -> None:
        gradients = (p.grad for p in self._parameters())
        # With create_graph=True, the caller needs the gradients' graph.
        if not any(g is not None and g.requires_grad for g in gradients):
            self.gather()

    def buffers(self) -> tuple[Tensor, ...]:
        """The buffers, one `[N]` per dtype and device, with all current gradients."""
        self.gather()
        return self._buffers

    @torch.no_grad()
    def gather(self) -> None:
        """Make every gradient a view of its buffer, and zero the rest of the buffers.

        Raises:
            RuntimeError: a sparse gradient.
            ValueError: what `context` refuses; every gradient is left as it was.
        """
        self._context.check_gradients_free()
        parameters = self._parameters()
        moved = [p for p in parameters if p.grad is not None and not self._is_in_place(p)]
        for parameter in moved:
            _check(parameter.grad)
        is_new = any(p.requires_grad and p not in self._places for p in parameters)
        if is_new or not all(map(self._fits, moved)):
            self._lay_out()
            moved = [p for p in parameters if p.grad is not None]
        if moved:
            foreach_copy_([self._places[p][0] for p in moved], [p.grad for p in moved])
            for parameter in moved:
                parameter.grad = self._places[parameter][0]
        empty = self._gaps + [view for p, (view, _) in self._places.items() if p.grad is None]
        if empty:
            foreach_zero_(empty)

    def _is_in_place(self, parameter: Tensor) -> bool:
        """Whether the parameter's gradient is its view, at the same address: `model.to(...)` moves gradients."""
        view, address = self._places.get(parameter, (None, 0))
        return view is parameter.grad and view.data_ptr() == address

    def _fits(self, parameter: Tensor) -> bool:
        """Whether the parameter's gradient can be copied into its place."""
        view, address = self._places.get(parameter, (None, 0))
        return view is not None and view.data_ptr() == address and _alike(view, parameter.grad)

    def _parameters(self) -> list[Tensor]:
        """The model's parameters, modality by modality, the rest of the model last."""
        owned = self._encoders.encoder_parameters()
        if self._known[0] is not owned:
            first = dict.fromkeys(p for p, _ in owned)
            self._known = (owned, list(first | dict.fromkeys(self._model.parameters())))
        return self._known[1]

    def _lay_out(self) -> None:
        """Allocate buffers for all parameters that are trainable or have a gradient."""
        kinds: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}
        for parameter in self._parameters():
            if parameter.requires_grad or parameter.grad is not None:
                like = parameter if parameter.grad is None else parameter.grad
                kinds.setdefault((like.dtype, like.device), []).append((parameter, like))
        self._places, self._gaps, buffers = {}, [], []
        for (dtype, device), members in kinds.items():
            room = _ALIGNMENT // dtype.itemsize
            spans = [-(-like.numel() // room) * room for _, like in members]
            buffer, offset = torch.zeros(sum(spans), dtype=dtype, device=device), 0
            buffers.append(buffer)
            for (parameter, like), span in zip(members, spans, strict=True):
                view = _view(buffer, offset, like)
                self._places[parameter] = (view, view.data_ptr())
                if like.numel() < span:
                    self._gaps.append(buffer[offset + like.numel() : offset + span])
                offset += span
        self._buffers = tuple(buffers)


def _view(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    """A view of the shape of `like`, with its order of elements where that leaves no gaps."""
    if is_dense(like):
        return buffer.as_strided(like.shape, like.stride(), offset)
    return buffer[offset : offset + like.numel()].view(like.shape)


def _alike(view: Tensor, gradient: Tensor) -> bool:
    """Whether a gradient can be copied into a view and be replaced by it: optimizers count on its order of elements."""
    if (view.shape, view.dtype, view.device) != (gradient.shape, gradient.dtype, gradient.device):
        return False
    strides = zip(view.shape, view.stride(), gradient.stride(), strict=True)
    return not is_dense(gradient) or all(size == 1 or one == other for size, one, other in strides)


def _check(gradient: Tensor) -> None:
    if gradient.layout is not torch.strided or is_sharded(gradient):
        raise RuntimeError(
            f"flatten_gradients() lays out whole dense gradients, and one of shape {list(gradient.shape)} is a "
            f"{type(gradient).__name__} of {gradient.layout}; make embeddings with sparse=False, or do without it"
        )
