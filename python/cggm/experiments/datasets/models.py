"""Small encoders, and a model that fuses any number of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURES = 32  # width of every encoder's output
HIDDEN = 32  # width of the fusion and of a unimodal classifier, whose output layer then has the head's shape


def vector_encoder(width: int) -> nn.Module:
    """One hidden layer: `[B, width] -> [B, 32]`.

    >>> vector_encoder(64)(torch.randn(5, 64)).shape
    torch.Size([5, 32])
    """
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, FEATURES))


class SeriesEncoder(nn.Module):
    """Two convolutions over time, mean and maximum, one linear layer: `[B, channels, T] -> [B, 32]`.

    Args:
        channels: channels of the series.

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
        return self.output(_mean_and_maximum(self.convolutions(series)))  # of [B, 48, (T - 5) // 4]


class ConvolutionalEncoder(nn.Module):
    """Three convolutions over time with batch normalization, mean and maximum, one linear layer.

    `[B, channels, T] -> [B, 32]`

    Args:
        channels: channels of the series.
        widths: channels after each convolution; the first two halve the time.

    >>> ConvolutionalEncoder(6)(torch.randn(5, 6, 128)).shape
    torch.Size([5, 32])
    """

    def __init__(self, channels: int, widths: tuple[int, int, int] = (128, 128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((channels, *widths), widths, (2, 2, 1), strict=False):
            layers += [nn.Conv1d(before, after, 5, stride, padding=2), nn.BatchNorm1d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(2 * widths[-1], FEATURES)

    def forward(self, series: Tensor) -> Tensor:
        """Features `[B, 32]` of a series `[B, channels, T]`."""
        return self.output(_mean_and_maximum(self.convolutions(series)))


def _mean_and_maximum(series: Tensor) -> Tensor:
    """Over time: `[B, C, T] -> [B, 2C]`."""
    return torch.cat([series.mean(2), series.amax(2)], dim=1)


class ConcatenationModel(nn.Module):
    """Encoders `encoders.<modality>`, fused by concatenation and one hidden layer: `M inputs -> [B, classes]`.

    Args:
        encoders: modality -> encoder to 32 features, in the order of the inputs.
        classes: number of logits.

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
