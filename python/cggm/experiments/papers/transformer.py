"""The transformer model of the text, audio and vision experiments: a projection, an encoder and a classifier each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sizes(NamedTuple):
    """Layers and dropout probabilities of one experiment, in the order of the papers' table."""

    layers: int
    attention: float
    relu: float
    embedding: float
    residual: float
    output: float
    heads: int = 5
    width: int = 40
    classifier_layers: int = 2


class _Layer(nn.Module):
    """Self-attention and a feed-forward network, each normalized before and added after."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.attention = nn.MultiheadAttention(width, sizes.heads, sizes.attention, batch_first=True)
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.relu_dropout, self.residual = nn.Dropout(sizes.relu), nn.Dropout(sizes.residual)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.before_attention(x)
        x = x + self.residual(self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0])
        y = self.relu_dropout(self.up(self.before_forward(x)).relu())
        return x + self.residual(self.down(y))


class SequenceEncoder(nn.Module):
    """Transformer over a sequence `[B, T, width] -> [B, T, width]`; all-zero positions are padding and stay zero.

    Args:
        sizes: of the experiment.
        layers: instead of its number.

    >>> encoder = SequenceEncoder(Sizes(1, 0.1, 0.1, 0.1, 0.1, 0.1))
    >>> encoder(torch.randn(2, 7, 40)).shape
    torch.Size([2, 7, 40])
    """

    def __init__(self, sizes: Sizes, layers: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Dropout(sizes.embedding)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(layers or sizes.layers))
        self.normalize = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Features of every position."""
        padding = padded(x)  # [B, T]
        seen = padding.clone()
        seen[:, 0] = False  # attention over nothing would not be a number
        x = self.embedding(x * math.sqrt(x.shape[-1]) + _positions(x))
        for layer in self.layers:
            x = layer(x, seen)
        return self.normalize(x).masked_fill(padding[..., None], 0.0)


def padded(x: Tensor) -> Tensor:
    """Whether each position `[B, T]` of `[B, T, width]` holds only zeros."""
    return (x == 0).all(-1)


def average(x: Tensor) -> Tensor:
    """Mean over the positions that are not padding: `[B, T, width] -> [B, width]`."""
    return x.sum(1) / (~padded(x)).sum(1, keepdim=True).clamp_min(1)


def _positions(x: Tensor) -> Tensor:
    """Sinusoids `[T, width]`."""
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
    half = torch.arange(0, x.shape[2], 2, device=x.device, dtype=x.dtype)
    angles = time * torch.exp(half * (-math.log(10_000.0) / x.shape[2]))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, : x.shape[2]]


class SequenceModel(nn.Module):
    """Projections, encoders, fusion by concatenation with one residual block, head.

    Args:
        widths: modality -> width of its input `[B, T, width]`, in the order of the inputs.
        outputs: classes, or 1 for regression.
        sizes: of the experiment.

    >>> model = SequenceModel({"text": 12, "audio": 5}, 4, Sizes(1, 0.1, 0.1, 0.1, 0.1, 0.1))
    >>> model(torch.randn(2, 7, 12), torch.randn(2, 9, 5)).shape
    torch.Size([2, 4])
    """

    def __init__(self, widths: Mapping[str, int], outputs: int, sizes: Sizes) -> None:
        super().__init__()
        total = sizes.width * len(widths)
        self.projections = nn.ModuleDict(
            {m: nn.Linear(w, sizes.width, bias=False) for m, w in widths.items()}
        )
        self.encoders = nn.ModuleDict({m: SequenceEncoder(sizes) for m in widths})
        self.first, self.second = nn.Linear(total, total), nn.Linear(total, total)
        self.dropout = nn.Dropout(sizes.output)
        self.head = nn.Linear(total, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits or predictions `[B, outputs]`; all-zero positions of the inputs are padding."""
        features = [
            average(self.encoders[m](projection(x)))
            for (m, projection), x in zip(self.projections.items(), inputs, strict=True)
        ]
        fused = torch.cat(features, dim=1)  # [B, M · width]
        return self.head(fused + self.second(self.dropout(F.relu(self.first(fused)))))


class SequenceClassifier(nn.Module):
    """A unimodal classifier: a light transformer, the mean over time, an output layer of the head's shape.

    Args:
        head: the model's head.
        sizes: of the experiment.
    """

    def __init__(self, head: nn.Linear, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(sizes, sizes.classifier_layers)
        self.hidden = nn.Linear(sizes.width, head.in_features)
        self.output = nn.Linear(head.in_features, head.out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs of an encoder's features `[B, T, width]`."""
        return self.output(self.hidden(average(self.encoder(features))).relu())
