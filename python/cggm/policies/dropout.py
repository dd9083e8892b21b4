"""Modality dropout: some samples lose one of their modalities before the fusion."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from cggm.arguments import check_range

from .roles import Dropout


@dataclass(frozen=True)
class ModalityDropout(Dropout):
    """Zeroes one modality's features before the fusion, in each sample with probability p.

    A sample loses at most one modality, each with probability `p / M`. The unimodal classifiers see the original
    features. Dropout is off while the model is in evaluation mode. The draws come from torch's global random number
    generator (`torch.manual_seed`): one draw per sample and forward pass, shared by all encoders. Samples are the first
    axis of the features unless `Encoder(layout=...)` says otherwise. It can be added to any policy, as in
    `UnimodalLosses() + ModalityDropout(0.35)`.

    Args:
        p: probability in `[0, 1]`.
        fill: what stands in for each of the dropped features, in `[0, 1]`. A model that divides features by their norm,
            as CLIP does, makes NaN of zeros; `1e-6` is as good as zero elsewhere, and safe there.

    Raises:
        ValueError: an argument outside its range.

    >>> ModalityDropout(0.3).rates(2)
    (0.15, 0.15)
    """

    p: float
    _: KW_ONLY
    fill: float = 0.0  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_range("p", self.p, 0.0, 1.0)
        check_range("fill", self.fill, 0.0, 1.0)

    def rates(self, modalities: int) -> tuple[float, ...]:
        """`p / M` for each of the M modalities."""
        return (self.p / modalities,) * modalities
