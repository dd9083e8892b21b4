"""How a model is distributed over processes, and how its unimodal classifiers stay equal on all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..torch_private import active_reducer, at_end_of_backward, reduced_parameters, uncompiled
from .collectives import average_over_ranks_, is_sharded, shard_groups, world_size


class DistributedContext:
    """Knows how a model is distributed, and keeps the unimodal classifiers equal on all ranks if nothing else does.

    A `DistributedDataParallel` created after the classifiers were attached reduces their gradients. One created before
    does not know them, so this class averages their gradients in one collective. With `fully_shard`, the classifiers
    become a separate sharded module.

    Args:
        model: the user's model, with or without a wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = uncompiled(model)
        self._classifiers: nn.Module = nn.Module()
        self._handle: Any = None
        self._to_average = False
        self._reducer = self._model if isinstance(self._model, DistributedDataParallel) else None
        self.sharded = any(is_sharded(p) for p in self._model.parameters())

    def adopt(self, classifiers: nn.Module) -> None:
        """Register the unimodal classifiers before they are attached, and shard them if the model is sharded.

        Raises:
            ValueError: the parameters are sharded, but not by `fully_shard` of the whole model; or the process group
                does not contain all ranks.
        """
        self._classifiers = classifiers
        self._check_reducer()
        if self.sharded:
            _shard(classifiers, self._model)

    def attach(self, model: nn.Module) -> None:
        """Record in every forward pass which reducer runs the user's module."""
        if world_size() > 1 and not self.sharded:
            self._handle = model.register_forward_pre_hook(self._note_reducer)

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()

    @torch.no_grad()
    def start(self) -> bool:
        """Copy the first rank's values to all ranks, unless DistributedDataParallel already did.

        Returns:
            Whether the classifiers' shapes may still change; only a single process may change them.
        """
        if self._reducer is not None and not self._known():
            for tensor in (*self._classifiers.parameters(), *self._classifiers.buffers()):
                dist.broadcast(tensor, 0)
        return world_size() == 1 and not self.sharded

    def backward_started(self) -> None:
        """Average the classifiers' gradients at the end of this backward pass, unless a reducer does so.

        Waiting for the step would be too late: if one rank's classifier overflows, `GradScaler` skips the step on that
        rank only.
        """
        if self._reducer is not None and not self._known():
            self._to_average = True
            if self._reducer.require_backward_grad_sync:  # not under no_sync()
                at_end_of_backward(self.average_gradients_)

    def average_gradients_(self) -> None:
        """Average the classifiers' gradients over the ranks if there are new ones since the last call."""
        if not self._to_average:
            return
        self._to_average = False
        average_over_ranks_([p.grad for p in self._classifiers.parameters() if p.grad is not None])

    def makes_gradients_apart(self) -> bool:
        """Whether the encoders' gradients may be computed outside the backward pass: no reducer waits for them."""
        reducer = self._reducer
        waits = reducer is None or not reducer.find_unused_parameters or reducer.gradient_as_bucket_view
        return not self.sharded and (world_size() == 1 or not waits)

    def check_gradients_free(self) -> None:
        """Reject moving gradients whose memory is already managed.

        Raises:
            ValueError: the gradients are shards, or views of DistributedDataParallel's buckets.
        """
        if self.sharded or (self._reducer is not None and self._reducer.gradient_as_bucket_view):
            other = (
                "fully_shard()" if self.sharded else "DistributedDataParallel(gradient_as_bucket_view=True)"
            )
            raise ValueError(
                f"flatten_gradients() and {other} would both lay the gradients out; leave one of them out"
            )

    def _note_reducer(self, _module: nn.Module, _arguments: tuple) -> None:
        # Some frameworks hand the bare module out while they run it inside the reducer.
        active = active_reducer()
        if active is not None and active is not self._reducer:
            self._reducer = active
            self._check_reducer()

    def _known(self) -> bool:
        known = {id(p) for p in reduced_parameters(self._reducer)}  # type: ignore[arg-type]
        return all(id(p) in known for p in self._classifiers.parameters())

    def _check_reducer(self) -> None:
        if self._reducer is None:
            return
        if dist.get_world_size(self._reducer.process_group) != world_size():
            raise ValueError(
                "model: DistributedDataParallel has a process_group of its own, but scores are summed over all "
                f"{world_size()} processes; leave process_group out"
            )
        if self._reducer.find_unused_parameters and self._known():
            raise RuntimeError(
                "DistributedDataParallel(find_unused_parameters=True) takes the attached unimodal classifiers for "
                "unused, since they run after the model; make it before the optimizer wrapper, or pass False"
            )


def _shard(classifiers: nn.Module, model: nn.Module) -> None:
    """Shard the classifiers over the mesh of a model that `fully_shard` has sharded as a whole."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    sharded = [p for p in model.parameters() if is_sharded(p)]
    if not isinstance(model, FSDPModule) or any(len(shard_groups(p)) != 1 for p in sharded):
        raise ValueError(
            "model: some of its parameters are DTensors, but not because fully_shard() was called on the model "
            "itself over a data mesh of one or two dimensions; tensor parallelism and a model of which only "
            "parts are sharded are not supported: call fully_shard(model) last, before making the optimizer"
        )
    own = {p for p in classifiers.parameters() if is_sharded(p)}  # the model's unimodal heads
    known = {"ignored_params": own} if own else {}
    fully_shard(classifiers, mesh=sharded[0].device_mesh, reshard_after_forward=False, **known)
