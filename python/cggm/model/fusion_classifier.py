"""The model's own fusion as a unimodal classifier: the other modalities' features are zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..finishing import surely
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


def read_fused(choices: Mapping[str, Any], head_path: str | None, sharded: bool) -> dict[str, int]:
    """The modalities with `classifier="fusion"`, and their indices.

    Args:
        choices: modality -> as `Encoder.classifier`.
        head_path: the name of the head, or None.
        sharded: whether each process holds only a part of the weights.

    Raises:
        ValueError: there are some, and the fusion cannot run again.
    """
    fused = {name: i for i, (name, c) in enumerate(choices.items()) if isinstance(c, str) and c == "fusion"}
    if fused and (head_path is None or sharded):
        problem = (
            "head is None: pass the model's output layer"
            if head_path is None
            else "fully_shard() frees weights"
        )
        raise ValueError(
            f"encoders[{next(iter(fused))!r}]: classifier='fusion' runs the fusion again, and {problem}"
        )
    return fused


@contextlib.contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """Keep the model's parameters out of the graph."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def restore() -> None:
        for parameter in trained:
            parameter.requires_grad_(True)

    with surely(restore):
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
