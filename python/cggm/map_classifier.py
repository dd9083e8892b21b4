"""The unimodal classifier of a model that puts out a map: a class for every pixel or voxel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        """The channels that it expects."""
        return self.hidden.weight.shape[1]

    def fit(self, width: int) -> None:
        """Give the first layer another number of input channels, its parameter staying the same object."""
        weight = self.hidden.weight
        self.hidden.in_channels = width
        weight.data = torch.empty(
            (weight.shape[0], width, *weight.shape[2:]), dtype=weight.dtype, device=weight.device
        )
        self.hidden.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C, ...]` of a feature map `[B, width, ...]`."""
        return self.output(self.hidden(features).relu())
