"""The public functions `segment_gram` and `segment_combine_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cggm_ops import schema
from cggm_ops.checks.tensors import check_factors, check_same_device
from cggm_ops.checks.types import UNCLEAR, check_list, check_tensor, check_tensors


def segment_gram(sets: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return all dot products between K sets of gradients, segment by segment; everything is read once.

    G[s, j, k] = ⟨g_j[s], g_k[s]⟩, summed in float64, so that the norm of a sum of nearly opposed gradients can be
    computed from them. Autograd does not follow this. Nothing is mutated.

    Args:
        sets: K lists of S tensors, of any shapes; the tensors of one segment agree in shape and dtype,
            float32, bfloat16, float16 or float64. Tensors whose strides differ within a segment are copied.

    Returns:
        [S, K, K] in float64, symmetric. The number of threads changes no bit.

    Raises:
        ValueError: there are no sets, or lengths of sets differ, or shapes, dtypes or devices in a segment.

    Source:
        The conflict test and the min-norm weights of Wei and Hu, MMPareto (ICML 2024, arXiv 2405.17730), are
        functions of these products.

    Example:
        >>> multimodal, unimodal = [torch.tensor([3.0, 4.0])], [torch.tensor([-4.0, 3.0])]
        >>> segment_gram([multimodal, unimodal])
        tensor([[[25.,  0.],
                 [ 0., 25.]]], dtype=torch.float64)
    """
    tensors = _flatten(sets)
    try:
        return schema.serving(schema.segment_gram, tensors)(tensors, len(sets))
    except UNCLEAR:
        _check_types(sets)
        raise


def segment_combine_(
    sets: Sequence[Sequence[Tensor]],
    weights: Tensor,
    *,
    noise: Sequence[Tensor] | None = None,
    deviations: Tensor | None = None,
) -> None:
    """Replace the first set of gradients by a weighted sum of all sets plus noise, segment by segment.

    g_0[s] ← Σ_k w[s, k] g_k[s] + σ[s] ν[s]. Computed in float32 (float64 for float64), rounded once.

    Args:
        sets: K lists of S tensors, as for `segment_gram`; those of the first set are mutated and must have no
            gaps in memory.
        weights: [S, K], float32 or float64, any finite values, on the device of the sets.
        noise: S tensors ν like those of a set, or None. With standard normal noise this is OGM-GE's enhancement.
        deviations: σ [S], required with `noise` and not allowed without.

    Raises:
        ValueError: as for `segment_gram`; weights of another shape or dtype; the first set shares memory with
            another tensor; noise without deviations or the reverse. Nothing has been changed then.
        RuntimeError: a tensor in the first set requires grad while autograd records.

    Source:
        The combination of Wei and Hu, MMPareto (ICML 2024, arXiv 2405.17730); the generalization enhancement
        of Peng et al., OGM-GE (CVPR 2022).

    Example:
        >>> first, second = [torch.tensor([1.0, 2.0])], [torch.tensor([10.0, 20.0])]
        >>> segment_combine_([first, second], torch.tensor([[0.5, 2.0]]))
        >>> first
        [tensor([20.5000, 41.0000])]
    """
    if (noise is None) != (deviations is None):
        raise ValueError("noise and deviations must be given together, or neither")
    if noise is not None and deviations is not None:
        check_tensor(weights, "weights")
        check_tensor(deviations, "deviations")
        check_factors(deviations, 1, "deviations")
        check_same_device(deviations, weights, "deviations", "weights")
        if weights.dim() != 2 or deviations.shape != weights.shape[:1]:
            raise ValueError(
                f"deviations must be [S] beside weights [S, K], found {list(deviations.shape)} beside "
                f"{list(weights.shape)}"
            )
        # Noise is one more set, and the deviations are its weights.
        sets = [*sets, noise]
        weights = torch.cat([weights, deviations.to(weights.dtype).unsqueeze(1)], 1)  # [S, K + 1]
    tensors = _flatten(sets)
    count = len(sets[0])
    try:
        schema.mutate(schema.segment_combine_, "sets[0]", list(sets[0]), tensors[count:], weights)
    except UNCLEAR:
        _check_types(sets)
        raise


def _check_types(sets: Sequence[Sequence[Tensor]]) -> None:
    check_list(sets, "sets", "lists of tensors")
    for index, tensors in enumerate(sets):
        check_tensors(tensors, f"sets[{index}]")


def _flatten(sets: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return all tensors, one set after the other, detached from autograd."""
    flat: list[Tensor] = []
    try:
        count = len(sets[0]) if sets else 0
        for tensors in sets:
            if len(tensors) != count:
                break
            for tensor in tensors:  # a comprehension would cost a tenth of a small call
                flat.append(tensor.detach() if tensor.requires_grad else tensor)  # noqa: PERF401
    except UNCLEAR:
        _check_types(sets)
        raise
    if flat and len(flat) == count * len(sets):
        return flat
    raise ValueError(
        "sets must be one or more lists of equally many tensors, found the lengths "
        f"{[len(tensors) for tensors in sets]}"
    )
