"""ResNet-18, with the options that segmentation and spectrograms need."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Feature maps `[B, channels, H, W] -> [B, 512, H/s, W/s]` of an 18-layer residual network.

    Args:
        channels: of the input.
        dense: keep a resolution of 1/8 by dilation, as DeepLab does, instead of 1/32.

    >>> import torch
    >>> ResNet18(1)(torch.randn(2, 1, 64, 64)).shape, ResNet18(1, dense=True)(torch.randn(2, 1, 64, 64)).shape
    (torch.Size([2, 512, 2, 2]), torch.Size([2, 512, 8, 8]))
    """

    def __init__(self, channels: int, *, dense: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        stages, inputs = [], 64
        plan = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4)) if dense else (
            (64, 1, 1), (128, 2, 1), (256, 2, 1), (512, 2, 1)
        )  # fmt: skip
        for outputs, stride, dilation in plan:
            stages += [_Block(inputs, outputs, stride, dilation), _Block(outputs, outputs, 1, dilation)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """The last feature map."""
        return self.stages(self.stem(x))
