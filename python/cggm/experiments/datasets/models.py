"""Small encoders and a model that fuses any number of them, for data that fit into memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURES = 32  # what every encoder puts out
HIDDEN = 32  # of the fusion, and of a unimodal classifier, so that its output layer has the head's shape


def vector_encoder(width: int) -> nn.Module:
    """One hidden layer: `[B, width] -> [B, 32]`.

    >>> vector_encoder(64)(torch.randn(5, 64)).shape
    torch.Size([5, 32])
    """
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, FEATURES))


class SeriesEncoder(nn.Module):
    """Two convolutions over time, mean and maximum, one linear layer: `[B, channels, T] -> [B, 32]`.

    Args:
        channels: of the series.

    >>> SeriesEncoder(13)(torch.randn(5, 13, 32)).shape
    torch.Size([5, 32])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(channels, 32, 5, stride=2), nn.ReLU(), nn.Conv1d(32, 48, 3, stride=2), nn.ReLU()
        )
        self.output = nn.Linear(96, FEATURES)

    def forward(self, series: Tensor) -> Tensor:
        """Features `[B, 32]` of a series `[B, channels, T]`, T at least 9."""
        time = self.convolutions(series)  # [B, 48, (T - 5) // 4]
        return self.output(torch.cat([time.mean(2), time.amax(2)], dim=1))


class ConcatenationModel(nn.Module):
    """Encoders `encoders.<modality>`, fused by concatenation and one hidden layer: `M inputs -> [B, classes]`.

    Args:
        encoders: modality -> encoder to 32 features, in the order of the inputs.
        classes: how many logits.

    >>> model = ConcatenationModel({"a": vector_encoder(3), "b": vector_encoder(7)}, 5)
    >>> model(torch.randn(2, 3), torch.randn(2, 7)).shape
    torch.Size([2, 5])
    """

    def __init__(self, encoders: Mapping[str, nn.Module], classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES * len(encoders), HIDDEN), nn.ReLU())
        self.head = nn.Linear(HIDDEN, classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        features = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        return self.head(self.fusion(torch.cat(features, dim=1)))


def classifier(classes: int) -> nn.Module:
    """A unimodal classifier, `[B, 32] -> [B, classes]`: the fusion and head of one modality alone."""
    return nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
