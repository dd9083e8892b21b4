"""Modality dropout: now and then a sample has to do without one of its modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Place, Policy, check_range


@dataclass(frozen=True)
class ModalityDropout(Policy):
    """Zeroes one modality's features before the fusion, in each sample with probability p.

    A sample loses one modality, each with probability `p / M`, or none: never all. The unimodal classifiers see
    the features as they are. Off in evaluation mode of the model; the draws come from torch's global random
    numbers (`torch.manual_seed`), one per sample of a forward pass, shared by all encoders. Features must have
    the samples in their first dimension. Composes with every policy: `UnimodalLosses() + ModalityDropout(0.35)`.

    Args:
        p: probability in `[0, 1]`.

    Raises:
        ValueError: a probability outside its range.

    >>> ModalityDropout(0.35).dropout
    0.35
    """

    p: float
    places: ClassVar[tuple[Place, ...]] = ("dropout",)

    def __post_init__(self) -> None:
        check_range("p", self.p, 0.0, 1.0)

    @property
    def dropout(self) -> float:  # type: ignore[override]
        """The probability p."""
        return self.p
