"""The model's own fusion as a unimodal classifier: the other modalities' features are zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .coalitions import CoalitionForward


class FusionClassifier(nn.Module):
    """One modality's unimodal output: the head's output with the other modalities' features zeroed.

    The unimodal loss sends no gradient to the fusion and the head, only to the modality's features, as in DGL (arXiv
    2507.10213). The fusion runs in the model's mode. It has no parameters.

    Args:
        fusion: runs the model's forward function again, up to the head.
        index: of the modality.
    """

    def __init__(self, fusion: CoalitionForward, index: int) -> None:
        super().__init__()
        self._fusion, self._index = fusion, index

    def forward(self, features: Tensor) -> Tensor:
        """The head's output `[B, C]` for the modality's features, in the shape that the encoder put out."""
        given = [torch.zeros_like(x) for x in self._fusion.features]
        given[self._index] = features.clone()  # the model may change it in place
        with _constant(self._fusion.model):
            return self._fusion(given)


@contextlib.contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """Keep the model's parameters out of the graph."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
