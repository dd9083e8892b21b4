"""Collectives between the processes that train one model, and access to their shards.

Replicas (DistributedDataParallel) hold whole gradients. Shards (FSDP2) are `DTensor`s: `local` returns this process's
part, and sums over the parts are added up over the mesh.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

Groups = tuple[Any, ...]  # of torch.distributed.ProcessGroup, which not every build of torch has


def world_size() -> int:
    """Number of processes in the default group, 1 without one.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(scores: Tensor, samples: int | Tensor) -> Tensor:
    """Means over the samples of all ranks; the only collective that a step needs.

    Every rank calls it once per step, so all ranks compute the same coefficients. Scores that are not finite do not
    count; where no rank has one, the mean is NaN.

    Args:
        scores: any shape, floating, means over this rank's samples; not mutated.
        samples: the number of this rank's samples; a tensor that broadcasts with the scores if they differ.
    """
    if world_size() == 1:
        return scores
    counts = torch.isfinite(scores) * torch.as_tensor(samples, device=scores.device).to(scores.dtype)
    sums = torch.stack([scores.masked_fill(counts == 0, 0) * counts, counts])
    dist.all_reduce(sums)
    return sums[0] / sums[1]


def sum_over_ranks(sums: Tensor) -> Tensor:
    """Sums over all ranks; in a single process, the tensor itself, unchanged."""
    if world_size() == 1:
        return sums
    sums = sums.clone()
    dist.all_reduce(sums)
    return sums


def average_over_ranks_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place with their means over all ranks, in one collective.

    Args:
        tensors: all on one device, with the same number and shapes on every rank; mutated.
    """

    def mean(flat: Tensor) -> Tensor:
        flat = flat.float()
        dist.all_reduce(flat)
        return flat / world_size()

    _exchange_(tensors, mean)


def first_ranks_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place with the first rank's values, in one collective.

    Args:
        tensors: all on one device, with the same number and shapes on every rank; mutated.
    """

    def first(flat: Tensor) -> Tensor:
        dist.broadcast(flat, 0)
        return flat

    _exchange_(tensors, first)


@torch.no_grad()
def _exchange_(tensors: Sequence[Tensor], collective: Callable[[Tensor], Tensor]) -> None:
    """Run one collective over all tensors, flattened into one; do nothing in a single process."""
    if world_size() == 1 or not tensors:
        return
    flat = collective(torch.cat([t.flatten() for t in tensors]))
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a `DTensor`. Importing the class takes a second, so it is looked up only if it is loaded.

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
    """Add up sums of local parts over the ranks that hold the other parts.

    Args:
        sums: any shape; mutated where there are groups.
        groups: as `shard_groups` returns them.
    """
    for group in groups:
        dist.all_reduce(sums, group=group)
    return sums


def check_parameters(parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Reject a model whose gradients would never reach the optimizer.

    Raises:
        RuntimeError: DeepSpeed ZeRO holds the gradients, or the optimizer has none of the model's parameters.
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
