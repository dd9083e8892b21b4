"""Models that do not fuse features: a unimodal model per modality, and the average of what they say."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LateFusion(nn.Module):
    """The average of the logits of one model per modality: `M inputs -> [B, classes]`.

    Args:
        encoders: one per modality, in the order of the inputs.
        classifiers: one per modality, `features -> [B, classes]`.

    >>> model = LateFusion([nn.Linear(3, 4), nn.Linear(5, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)])
    >>> model(torch.randn(7, 3), torch.randn(7, 5)).shape
    torch.Size([7, 2])
    """

    def __init__(self, encoders: Iterable[nn.Module], classifiers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoders, self.classifiers = nn.ModuleList(encoders), nn.ModuleList(classifiers)

    def unimodal(self, *inputs: Tensor) -> Tensor:
        """Logits of each modality's model: `[M, B, classes]`."""
        models = zip(self.encoders, self.classifiers, inputs, strict=True)
        return torch.stack([classifier(encoder(x)) for encoder, classifier, x in models])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Averaged logits `[B, classes]`."""
        return self.unimodal(*inputs).mean(0)

    def loss(self, inputs: Iterable[Tensor], target: Tensor) -> Tensor:
        """Cross entropy of the averaged logits."""
        return F.cross_entropy(self(*inputs), target)


class Ensemble(LateFusion):
    """As `LateFusion`, but every model trains on its own, and their probabilities are averaged."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logarithms of the averaged probabilities, `[B, classes]`."""
        logits = self.unimodal(*inputs)
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def loss(self, inputs: Iterable[Tensor], target: Tensor) -> Tensor:
        """The sum of the models' own losses: no model's gradient depends on another model."""
        return torch.stack([F.cross_entropy(logits, target) for logits in self.unimodal(*inputs)]).sum()
