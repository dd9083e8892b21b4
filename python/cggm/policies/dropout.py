"""Modality dropout: some samples lose one of their modalities before the fusion."""

from __future__ import annotations

from dataclasses import dataclass

from .base import check_range
from .roles import Dropout


@dataclass(frozen=True)
class ModalityDropout(Dropout):
    """Zeroes one modality's features before the fusion, in each sample with probability p.

    A sample loses one modality, each with probability `p / M`, or none: never all. The unimodal classifiers see
    the features as they are. Off in evaluation mode of the model; the draws come from torch's global random
    numbers (`torch.manual_seed`), one per sample of a forward pass, shared by all encoders. The samples are the first
    axis of the features unless `Encoder(layout=...)` says otherwise. It adds to every policy, as in `UnimodalLosses() +
    ModalityDropout(0.35)`.

    Args:
        p: probability in `[0, 1]`.

    Raises:
        ValueError: a probability outside its range.

    >>> ModalityDropout(0.3).rates(2)
    (0.15, 0.15)
    """

    p: float

    def __post_init__(self) -> None:
        check_range("p", self.p, 0.0, 1.0)

    def rates(self, modalities: int) -> tuple[float, ...]:
        """`p / M` for each of the M modalities."""
        return (self.p / modalities,) * modalities
