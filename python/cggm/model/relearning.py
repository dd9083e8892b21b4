"""Diagnosing and re-learning (Wei et al., ECCV 2024, arXiv 2407.09705): moves encoders towards their first weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import check_range
from ..distributed.collectives import mean_over_ranks
from .coalitions import in_evaluation
from .multimodal import MultimodalModel

_STARTS, _ITERATIONS = 10, 100  # of k-means

Batches = Iterable[tuple[Any, Tensor]]


class Relearning(NamedTuple):
    """The result of `relearn`, `[M]` each."""

    shares: Tensor  # how far each encoder went towards its first weights, 0 for not at all
    train: Tensor  # purity of the clusters of the training samples' features
    validation: Tensor  # the same of the validation samples'


@torch.no_grad()
def relearn(
    model: MultimodalModel,
    train: Batches,
    validation: Batches,
    initial: Mapping[str, Tensor],
    strength: float = 3.0,
) -> Relearning:
    """Move each encoder towards its first weights; the worse it separates unseen samples, the farther.

    `θ_i ← (1 − a_i) θ_i + a_i θ_i(0)` with `a_i = tanh(λ |purity_train − purity_validation|)`. The purity is the share
    of samples in the most frequent class of their cluster, of the features scaled to `[−1, 1]` in each dimension, in as
    many clusters as the head has outputs. The paper does so three times, every 20 epochs.

    Only the encoders' parameters change: not their buffers, not the fusion, not the classifiers, nor what the optimizer
    remembers (the authors' momentum stays, too). The clustering always starts alike and leaves torch's random numbers
    alone. In several processes each one calls it, with samples of its own or the same, and shares are averaged.

    Args:
        model: runs on the batches in evaluation mode; its encoders' parameters are mutated.
        train: batches as for training: pairs of the model's inputs (a tensor, a tuple of arguments, or a mapping of
            keywords) and class indices `[B]`, on the model's device. A list of one pair will do; a loader of triples is
            `(((audio, image), y) for audio, image, y in loader)`.
        validation: the same, of samples that are not trained on.
        initial: the model's state dict before training, `copy.deepcopy(model.state_dict())`, on any device: one more
            copy of the weights, which the caller keeps where there is room and saves beside the checkpoints.
        strength: λ `>= 0`; the authors' default.

    Raises:
        TypeError: `initial` is no state dict.
        ValueError: targets of another form, fewer samples than classes, a parameter that `initial` lacks or has in
            another shape. Nothing has been changed then.
        RuntimeError: the parameters are sharded.
    """
    check_range("strength", strength, 0.0)
    if model.context.sharded:
        raise RuntimeError(
            "relearn() needs whole parameters; with fully_shard() every process holds a part of them"
        )
    start = _initial_parameters(model, initial)
    found = [
        _purities(model, batches, name) for batches, name in ((train, "train"), (validation, "validation"))
    ]
    purities = mean_over_ranks(torch.stack(found), 1)  # [2, M]
    shares = torch.tanh(strength * (purities[0] - purities[1]).abs())
    for index, parameter, value in start:
        parameter.lerp_(value.to(parameter), shares[index].to(parameter))
    return Relearning(shares, *purities)


def _initial_parameters(
    model: MultimodalModel, initial: Mapping[str, Tensor]
) -> list[tuple[int, Tensor, Tensor]]:
    """The encoders' parameters with the indices of their modalities and their first values."""
    if not isinstance(initial, Mapping):
        raise TypeError(
            f"initial must be the model's state dict before training, got {type(initial).__name__}"
        )
    names = {p: name for name, p in model.module.named_parameters()}
    found = []
    for parameter, index in model.encoders.encoder_parameters():
        value = initial.get(names[parameter])
        there = list(value.shape) if isinstance(value, Tensor) else value
        if there != list(parameter.shape):
            raise ValueError(
                f"initial must hold the model's state dict before training: {names[parameter]} is "
                f"{list(parameter.shape)} here, and {there} there"
            )
        found.append((index, parameter, value))
    return found


def _purities(model: MultimodalModel, batches: Batches, name: str) -> Tensor:
    """`[M]`."""
    features, target = pooled_features(model, batches, name)
    weight = model.head_weight
    if weight is None:
        raise ValueError(
            "head: relearn() makes as many clusters as the head has outputs, and there is no head's weight"
        )
    classes = weight.shape[0]
    if target.ndim != 1 or target.is_floating_point() or len(target) < classes or target.max() >= classes:
        raise ValueError(
            f"{name} must hold class indices below {classes}, and as many samples as classes at least, got targets "
            f"{list(target.shape)} of {target.dtype}"
        )
    return torch.stack([purity(x, target, classes) for x in features])


def run_model(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, (tuple, list)) else (inputs,)))


def pooled_features(model: MultimodalModel, batches: Batches, name: str) -> tuple[list[Tensor], Tensor]:
    """M modalities' features `[N, D]`, means over the positions that count, and the targets `[N]`."""
    seen: list[list[Tensor]] = [[] for _ in model.encoders.names]
    targets: list[Tensor] = []
    try:
        for inputs, target in batches:
            with in_evaluation(model.module), torch.enable_grad():  # the hooks look at training passes alone
                run_model(model.module, inputs)
            (run,) = model.read_features(None, target, detach=True)
            for into, x, mask in zip(seen, run.features, run.masks, strict=True):
                into.append(_vectors(x, mask))
            targets.append(target)
            model.forget()
    finally:
        model.forget()
    if not targets:
        raise ValueError(f"{name} holds no batch")
    return [torch.cat(parts) for parts in seen], torch.cat(targets)


def _vectors(features: Tensor, mask: Tensor | None) -> Tensor:
    """`[B, D]`: sequences `[B, T, D]` and maps `[B, D, ...]` averaged over their positions."""
    features = features.float()
    if mask is not None:
        counts = mask[..., None].to(features.dtype)  # [B, T, 1]
        return (features * counts).sum(1) / counts.sum(1)
    if features.ndim == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


def purity(features: Tensor, target: Tensor, clusters: int) -> Tensor:
    """Share of the samples whose class is the most frequent one of their cluster, 0-dimensional.

    Args:
        features: `[N, D]`.
        target: `[N]`, class indices.
        clusters: their number, also the number of classes.

    >>> purity(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 0]), 2)
    tensor(0.7500)
    """
    low, high = features.aminmax(dim=0)
    scaled = 2 * (features - low) / (high - low).clamp_min(torch.finfo(features.dtype).tiny) - 1
    counts = torch.bincount(k_means(scaled, clusters) * clusters + target, minlength=clusters**2)
    return counts.view(clusters, clusters).amax(1).sum() / len(target)


def k_means(features: Tensor, clusters: int) -> Tensor:
    """The cluster `[N]` of each sample: the best of ten runs of Lloyd's algorithm after k-means++, always the same.

    Args:
        features: `[N, D]`, floating.
        clusters: how many, at most N.

    >>> k_means(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).bincount()
    tensor([2, 2])
    """
    generator = torch.Generator().manual_seed(0)
    best, least = features.new_zeros(len(features), dtype=torch.long), torch.inf
    for _ in range(_STARTS):
        centres, nearest = _far_apart(features, clusters, generator), None
        for _ in range(_ITERATIONS):
            distances, found = torch.cdist(features, centres).min(1)  # [N] each
            if nearest is not None and torch.equal(found, nearest):
                break
            nearest = found
            member = F.one_hot(nearest, clusters).to(
                features.dtype
            )  # [N, K]; a product adds up in a fixed order
            sizes = member.sum(0)[:, None]
            centres = torch.where(sizes > 0, member.T @ features / sizes.clamp_min(1), centres)
        spread = distances.square().sum().item()
        if spread < least:
            best, least = found, spread
    return best


def _far_apart(features: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Samples `[K, D]` drawn by the square of their distance to those drawn before (k-means++)."""
    weights = torch.ones(len(features))
    drawn: list[Tensor] = []
    for _ in range(clusters):
        drawn.append(features[torch.multinomial(weights, 1, generator=generator).item()])
        weights = torch.cdist(features, torch.stack(drawn)).amin(1).square().cpu()
        weights = weights + (weights.sum() == 0)  # fewer different samples than clusters
    return torch.stack(drawn)
