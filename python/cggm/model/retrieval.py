"""Retrieval within a batch, which scores modalities that are trained contrastively."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def compared_in_batch(
    features: Sequence[Tensor], names: Sequence[str], temperature: float
) -> tuple[list[Tensor], Tensor]:
    """Each modality's embeddings as queries among those of every other modality.

    Args:
        features: M tensors `[B, D]`.
        names: the modalities, for errors.
        temperature: divides the cosines.

    Returns:
        M tensors of logits `[(M − 1) B, B]`, and the target `[(M − 1) B]`: the sample that each query belongs to.

    Raises:
        ValueError: features that cannot be compared.

    >>> logits, target = compared_in_batch([torch.eye(2), 2 * torch.eye(2)], ("image", "text"), 0.5)
    >>> logits[0], target
    (tensor([[2., 0.],
            [0., 2.]]), tensor([0, 1]))
    """
    shapes = {name: list(x.shape) for name, x in zip(names, features, strict=True)}
    if features[0].ndim != 2 or len(set(map(tuple, shapes.values()))) > 1:
        raise ValueError(
            f"scores=RetrievalScores() compares embeddings [B, D] of one shape, found {shapes}: name as encoders the "
            "modules that put out what the contrastive loss compares, as [tower, projection] where there are two, and "
            "its output with Encoder(..., output=...)"
        )
    units = [F.normalize(x.detach().float(), dim=1) for x in features]
    others = [[b for j, b in enumerate(units) if j != i] for i in range(len(units))]
    logits = [torch.cat([a @ b.T for b in rest]) / temperature for a, rest in zip(units, others, strict=True)]
    target = torch.arange(len(units[0]), device=units[0].device).repeat(len(units) - 1)
    return logits, target
