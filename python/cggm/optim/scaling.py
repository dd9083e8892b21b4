"""Scales the encoders' gradients by the coefficients, adds noise, and measures norms and cosines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from cggm_ops import batched_cosine, modulate_, scale_, segment_combine_

from ..distributed.collectives import Groups, first_ranks_, is_sharded, local, shard_groups, sum_over_shards
from ..torch_private import foreach_norm

Parameters = Sequence[tuple[Tensor, int]]  # parameters with the index of their modality


def scale_gradients_(
    parameters: Parameters, coefficients: Tensor, fusion: Tensor | None, unimodal: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Multiply every encoder's gradients by its coefficient in place, and measure them in the same pass.

    This takes one kernel launch per device.

    Args:
        parameters: the encoders' parameters; those without a gradient are skipped.
        coefficients: `[M]`.
        fusion: gradient of the head's weight, or None if it has no gradient.
        unimodal: M gradients of the classifiers' output weights, or an empty sequence.

    Returns:
        Cosines `[M]` (zeros without `fusion`) and gradient norms `[M]` after scaling.
    """
    cosines = None
    squared = torch.zeros(coefficients.numel(), dtype=torch.float64, device=coefficients.device)  # [M]
    for (device, groups), (grads, owners) in by_place(_gradients(parameters)).items():
        scales = coefficients.to(device)
        if fusion is not None and fusion.device == device and not is_sharded(fusion):
            cosines, sums = modulate_(grads, owners, scales, fusion, unimodal)
        else:
            sums = scale_(grads, owners, scales)
        squared += sum_over_shards(sums[:-1], groups).to(squared.device)
    if cosines is None:
        cosines = head_cosines(fusion, unimodal, coefficients)
    return cosines, squared.sqrt().float()


def _gradients(parameters: Parameters) -> Iterable[tuple[Tensor, int, Groups]]:
    """Dense gradients in this process: the values of a sparse gradient, the local shard of a sharded one."""
    for parameter, owner in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            if not gradient.is_coalesced():  # duplicate rows must be summed before taking the norm
                parameter.grad = gradient = gradient.coalesce()
            yield gradient._values(), owner, ()
        else:
            yield local(gradient), owner, shard_groups(gradient)


def by_place(
    tensors: Iterable[tuple[Tensor, int, Groups]],
) -> dict[tuple[torch.device, Groups], tuple[list[Tensor], list[int]]]:
    """Group tensors and their owners by device and by the process groups that hold their other shards."""
    places: dict[tuple[torch.device, Groups], tuple[list[Tensor], list[int]]] = {}
    for tensor, owner, groups in tensors:
        part, owners = places.setdefault((tensor.device, groups), ([], []))
        part.append(tensor)
        owners.append(owner)
    return places


def deviations(parameters: Parameters) -> list[Tensor]:
    """Standard deviations `std(g) + 1e-8` of the encoders' gradients, each 0-dimensional; `1e-8` for one element."""
    return [
        gradient.float().std(correction=min(1, gradient.numel() - 1)) + 1e-8
        for gradient, _, _ in _gradients(parameters)
    ]


def add_noise_(parameters: Parameters, strengths: Sequence[Tensor]) -> None:
    """Add Gaussian noise to the encoders' gradients in place. All ranks use the noise of the first rank.

    Args:
        parameters: the encoders' parameters; their gradients are mutated.
        strengths: the result of `deviations` for the same gradients.
    """
    numbered = ((gradient, i, ()) for i, (gradient, _, _) in enumerate(_gradients(parameters)))
    for gradients, numbers in by_place(numbered).values():
        sigmas = torch.stack([strengths[i] for i in numbers])  # [S]
        noise = [torch.randn_like(gradient) for gradient in gradients]
        first_ranks_(noise)  # otherwise the models of the ranks would drift apart
        segment_combine_([gradients], torch.ones_like(sigmas)[:, None], noise=noise, deviations=sigmas)


def head_cosines(fusion: Tensor | None, unimodal: Sequence[Tensor], like: Tensor) -> Tensor:
    """Cosines `[M]` between the head's gradient and each classifier's; zeros if the head has no gradient."""
    if fusion is None:
        return torch.zeros_like(like)
    if not is_sharded(fusion):
        return batched_cosine(fusion, unimodal)
    shard = local(fusion).double().flatten()  # [D], this rank's part
    others = torch.stack([local(u).double().flatten() for u in unimodal])  # [M, D], this rank's part
    sums = torch.cat([shard.square().sum()[None], others.square().sum(1), others @ shard])  # [1 + 2 M]
    square, squares, products = sum_over_shards(sums, shard_groups(fusion)).split(
        [1, len(others), len(others)]
    )
    norms = (square * squares).sqrt()
    return torch.where(norms > 0, products / norms, 0.0).to(like.dtype)


@torch.no_grad()
def gradient_norms(parameters: Parameters, coefficients: Tensor, waiting: bool = False) -> Tensor:
    """Norms `[M]` of the encoders' current gradients; zero for an encoder without gradients.

    Args:
        parameters: the encoders' parameters.
        coefficients: `[M]`.
        waiting: True if the gradients are not scaled yet; the norms are then multiplied by the coefficients instead.
    """
    squared = torch.zeros(coefficients.numel(), dtype=torch.float64, device=coefficients.device)  # [M]
    for (_, groups), (grads, owners) in by_place(_gradients(parameters)).items():
        wide = torch.float64 if any(g.dtype is torch.float64 for g in grads) else torch.float32
        squares = torch.stack(foreach_norm(grads, dtype=wide)).double().square()  # [S]
        sums = list(torch.zeros_like(squared, device=squares.device))
        runs = [(owner, len(list(run))) for owner, run in groupby(owners)]  # sorted by modality
        for (owner, _), part in zip(runs, squares.split([length for _, length in runs]), strict=True):
            sums[owner] = part.sum()
        squared += sum_over_shards(torch.stack(sums), groups).to(squared.device)
    norms = squared.sqrt().float()
    return norms * coefficients.abs() if waiting else norms
