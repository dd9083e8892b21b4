"""Everything that differs when several processes train one model, in one place.

Replicas (DistributedDataParallel) hold whole gradients; shards (FSDP2) hold `DTensor`s, of which the arithmetic
elsewhere only ever sees the local part: `local` hands it out, and sums over it are added up over the mesh.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

Groups = tuple[Any, ...]  # of torch.distributed.ProcessGroup, which not every build of torch has


def world_size() -> int:
    """Number of processes in the default group, 1 without one.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(scores: Tensor, samples: int) -> Tensor:
    """Means `[M]` over the samples of all ranks: the one collective that a step needs.

    Every rank calls it once in every step, so that coefficients made from the result are the same everywhere.

    Args:
        scores: `[M]` float32, means over this rank's samples; left alone.
        samples: their number.
    """
    if world_size() == 1:
        return scores
    sums = torch.cat([scores, scores.new_ones(1)]) * samples  # [M + 1]
    if samples == 0:  # a mean over nothing is NaN
        sums.zero_()
    dist.all_reduce(sums)
    return sums[:-1] / sums[-1]


@torch.no_grad()
def average_over_ranks_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all ranks, in one collective; mutated.

    Args:
        tensors: of the same number and shapes on every rank.
    """
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([t.flatten().float() for t in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def first_ranks_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by the first rank's, in one collective; mutated.

    Args:
        tensors: of one device, and of the same number and shapes on every rank.
    """
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.broadcast(flat, 0)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a `DTensor`; where nobody has imported them, which takes a second, there is none.

    >>> is_sharded(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a `DTensor`, sharing its memory; any other tensor itself.

    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a `DTensor`, gathered from every rank; any other tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_groups(tensor: Tensor) -> Groups:
    """The process groups over which a tensor is split: none for a plain tensor, one for FSDP2, HSDP included."""
    if not is_sharded(tensor):
        return ()
    return tuple(
        tensor.device_mesh.get_group(dim) for dim, place in enumerate(tensor.placements) if place.is_shard()
    )


def sum_over_shards(sums: Tensor, groups: Groups) -> Tensor:
    """Sums of local parts, added up over the ranks that hold the other parts.

    Args:
        sums: any shape; mutated where there are groups.
        groups: as `shard_groups` returns them.
    """
    for group in groups:
        dist.all_reduce(sums, group=group)
    return sums


class ClassifierReplicas:
    """Keeps the unimodal classifiers equal on all ranks where nothing else does.

    `DistributedDataParallel` made after the classifiers were attached counts them among its parameters and
    reduces their gradients; made before, it does not know them, and they are averaged here, in one collective.
    With `fully_shard` they become a sharded module of their own.

    Args:
        model: the user's model as given, in its wrapper or not.
        classifiers: the unimodal classifiers, not attached yet; sharded in place where the model is.

    Raises:
        ValueError: parameters sharded otherwise than by `fully_shard` of the whole model; a process group
            other than all ranks.
    """

    def __init__(self, model: nn.Module, classifiers: nn.Module) -> None:
        self._classifiers = classifiers
        self._handle: Any = None
        self._to_average = False
        while hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        self._reducer = model if isinstance(model, DistributedDataParallel) else None
        self._check_reducer()
        self.sharded = any(is_sharded(p) for p in model.parameters())
        if self.sharded:
            _shard(classifiers, model)

    def attach(self, model: nn.Module) -> None:
        """Find out in every forward pass which reducer runs the user's own module."""
        if world_size() > 1 and not self.sharded:
            self._handle = model.register_forward_pre_hook(self._note_reducer)

    def detach(self) -> None:
        """Take the hook off again."""
        if self._handle is not None:
            self._handle.remove()

    @torch.no_grad()
    def start(self) -> bool:
        """Give all ranks the first one's values, where DistributedDataParallel has not done so.

        Returns:
            Whether this process alone may still change the classifiers' shapes.
        """
        if self._reducer is not None and not self._known():
            for tensor in (*self._classifiers.parameters(), *self._classifiers.buffers()):
                dist.broadcast(tensor, 0)
        return world_size() == 1 and not self.sharded

    def backward_started(self) -> None:
        """Have the classifiers' gradients averaged over the ranks, where DistributedDataParallel does not do so.

        At the end of the backward pass that calls this, as DistributedDataParallel does it: at the step it would be
        too late, since a `GradScaler` that finds an overflow in one rank's classifier skips that rank's step.
        """
        if self._reducer is not None and not self._known():
            self._to_average = True
            if self._reducer.require_backward_grad_sync:  # not under no_sync()
                torch.autograd.Variable._execution_engine.queue_callback(self.average_gradients_)

    def average_gradients_(self) -> None:
        """Average the classifiers' gradients over the ranks, if some have come since this was last done."""
        if not self._to_average:
            return
        self._to_average = False
        average_over_ranks_([p.grad for p in self._classifiers.parameters() if p.grad is not None])

    def _note_reducer(self, _module: nn.Module, _arguments: tuple) -> None:
        # Some frameworks hand the bare module out while they run it inside the reducer.
        active = None if torch.compiler.is_compiling() else DistributedDataParallel._get_active_ddp_module()
        if active is not None and active is not self._reducer:
            self._reducer = active
            self._check_reducer()

    def _known(self) -> bool:
        known = {id(p) for p in self._reducer._module_parameters}  # type: ignore[union-attr]
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
    fully_shard(classifiers, mesh=sharded[0].device_mesh, reshard_after_forward=False)


def check_parameters(parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Refuse a model whose gradients would never reach the optimizer.

    Raises:
        RuntimeError: DeepSpeed ZeRO keeps them elsewhere; the optimizer has none of the model's parameters.
    """
    if any(hasattr(p, name) for p in parameters for name in ("ds_id", "ds_tensor", "_hp_mapping")):
        raise RuntimeError(
            "DeepSpeed ZeRO keeps gradients in partitions of its own and leaves .grad empty, so there is nothing to "
            "modulate; use fully_shard() (FSDP2) or DistributedDataParallel"
        )
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    if stepped.isdisjoint(parameters):
        raise RuntimeError(
            "the optimizer has none of the model's parameters: they were replaced since it was made, as "
            "fully_shard() does; call fully_shard(model) first, then make the optimizer, then the wrapper"
        )
