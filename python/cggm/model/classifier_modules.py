"""The default unimodal classifiers: for vectors, sequences and maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..user_warning import warn_user


class UnimodalClassifier(nn.Module):
    """Features → the head's input width → ReLU → outputs, so that the output layer has the head's shape.

    Sequences `[B, T, width]` are averaged over `T`, maps `[B, width, ...]` of four and more dimensions over all
    positions; with `attention`, one self-attention layer runs over the positions first.

    Args:
        width: the features' width. A wrong guess is corrected by `fit` at the first forward pass.
        head: the fusion's output layer, an `nn.Linear` of weight `[C, H]`.
        attention: let positions attend to each other before they are averaged, as in the paper.

    >>> classifier = UnimodalClassifier(16, nn.Linear(32, 10))
    >>> classifier(torch.randn(4, 16)).shape, classifier.output.weight.shape
    (torch.Size([4, 10]), torch.Size([10, 32]))
    """

    def __init__(self, width: int, head: nn.Linear, *, attention: bool = False) -> None:
        super().__init__()
        place = {"device": head.weight.device, "dtype": head.weight.dtype}
        self.hidden = nn.Linear(width, head.in_features, **place)
        self.attention = (
            nn.MultiheadAttention(head.in_features, math.gcd(head.in_features, 4), batch_first=True, **place)
            if attention
            else None
        )
        self.output = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, **place)

    @property
    def width(self) -> int:
        """The expected width of the features."""
        return self.hidden.weight.shape[1]

    def fit(self, width: int) -> None:
        """Change the first layer's input width; its parameter stays the same object."""
        self.hidden.in_features = width
        self.hidden.weight.data = self.hidden.weight.new_empty(self.hidden.out_features, width)
        self.hidden.reset_parameters()

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of features `[B, width]`, `[B, T, width]` or `[B, width, ...]`.

        Args:
            features: of one modality.
            mask: bool `[B, T]`, False at padding; every sample needs at least one True.
        """
        positions = features.flatten(2).transpose(1, 2) if features.ndim > 3 else features  # [B, T, width]
        hidden = self.hidden(positions)
        if hidden.ndim == 3:
            if self.attention is not None:
                padding = None if mask is None else ~mask
                attended, _ = self.attention(
                    hidden, hidden, hidden, key_padding_mask=padding, need_weights=False
                )
                hidden = hidden + attended
            if mask is None:
                hidden = hidden.mean(1)  # [B, H]
            else:
                counts = mask.sum(1, keepdim=True).clamp_min(1)
                hidden = hidden.masked_fill(~mask[..., None], 0).sum(1) / counts
        return self.output(hidden.relu())


class UnimodalMapClassifier(nn.Module):
    """Feature map → a 1 × 1 convolution to the head's input width → ReLU → a convolution like the head.

    The output layer has the head's weight shape; the map stays as large as the features' (the segmentation task
    resizes it to the target's).

    Args:
        width: channels of the feature map. A wrong guess is corrected by `fit` at the first forward pass.
        head: the fusion's output layer, an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` of one group, weight `[C, H, ...]`.

    >>> classifier = UnimodalMapClassifier(16, nn.Conv2d(32, 4, 3, padding=1))
    >>> classifier(torch.randn(2, 16, 5, 6)).shape, classifier.output.weight.shape
    (torch.Size([2, 4, 5, 6]), torch.Size([4, 32, 3, 3]))
    """

    def __init__(self, width: int, head: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        kind = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(head, kind))
        place = {"device": head.weight.device, "dtype": head.weight.dtype}
        self.hidden = kind(width, head.in_channels, 1, **place)
        self.output = kind(
            head.in_channels,
            head.out_channels,
            head.kernel_size,
            padding=head.padding,
            dilation=head.dilation,
            bias=head.bias is not None,
            **place,
        )

    @property
    def width(self) -> int:
        """The expected number of channels."""
        return self.hidden.weight.shape[1]

    def fit(self, width: int) -> None:
        """Change the first layer's number of input channels; its parameter stays the same object."""
        weight = self.hidden.weight
        self.hidden.in_channels = width
        weight.data = torch.empty(
            (weight.shape[0], width, *weight.shape[2:]), dtype=weight.dtype, device=weight.device
        )
        self.hidden.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C, ...]` of a feature map `[B, width, ...]`."""
        return self.output(self.hidden(features).relu())


DEFAULTS = (UnimodalClassifier, UnimodalMapClassifier)


def fit_width(name: str, classifier: nn.Module, features: Tensor, *, fit: bool, copied: bool) -> None:
    """Give a default classifier the features' width where it guessed another one.

    Args:
        name: the modality.
        classifier: mutated where it is a default one of another width.
        features: as it reads them.
        fit: whether its width may still change.
        copied: whether there are copies of it, whose width stays.

    Raises:
        ValueError: another width, which may not change any more.
    """
    if not isinstance(classifier, DEFAULTS):
        return
    channels_first = features.ndim > 3 or isinstance(classifier, UnimodalMapClassifier)
    width = features.shape[1] if channels_first else features.shape[-1]
    if width == classifier.width:
        return
    if not fit:
        raise ValueError(
            f"encoders[{name!r}]: its classifier expects features of width {classifier.width}, but the "
            f"encoder puts out {list(features.shape)}; pass Encoder(..., classifier={width})"
        )
    if copied:
        warn_user(
            f"encoders[{name!r}]: a copy of the model was made before the first balance(), which has just changed the "
            f"width of its classifier from {classifier.width}, a guess, to {width}. Parameters of the two cannot be "
            f"averaged (AveragedModel, EMA): pass Encoder(..., classifier={width}), or copy after the first step"
        )
    classifier.fit(width)
