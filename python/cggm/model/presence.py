"""Which samples of a batch have which modality, as `balance(present=...)` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tasks.base import fill_absent
from ..tasks.structures import first_tensor


@dataclass(frozen=True)
class Presence:
    """For each of M modalities, the samples that have it.

    Args:
        masks: bool `[B]`, or None for all samples.
        counts: `[M]` float32, how many samples have each modality.
    """

    masks: Sequence[Tensor | None]
    counts: Tensor

    def without_absent(self, index: int, features: Tensor) -> Tensor:
        """The features `[B, ...]` with zeros in the samples that do not have modality `index`."""
        mask = self.masks[index]
        return features if mask is None else fill_absent(features, mask, 0)


def check_present(present: Mapping[str, Tensor | bool], names: Sequence[str]) -> None:
    """Reject something that is no mapping of known modalities to masks.

    Raises:
        TypeError, ValueError: see above.
    """
    if not isinstance(present, Mapping):
        raise TypeError(
            f"present must map modalities to masks, as in {{{names[0]!r}: mask}}, got {type(present).__name__}"
        )
    unknown = sorted(set(present) - set(names), key=str)
    if unknown:
        raise ValueError(f"present names {unknown}, but the modalities are {list(names)}")
    for name, mask in present.items():
        dense = isinstance(mask, Tensor) and mask.layout is torch.strided and not mask.is_meta
        if not isinstance(mask, bool) and not (dense and mask.dtype == torch.bool):
            found = (
                f"{mask.dtype} of layout {mask.layout} on {mask.device}"
                if isinstance(mask, Tensor)
                else type(mask).__name__
            )
            raise TypeError(
                f"present[{name!r}] must be a bool tensor [B], True for the samples that have this modality, or one "
                f"bool for all of them, got {found}"
            )


def read_present(
    present: Mapping[str, Tensor | bool],
    names: Sequence[str],
    features: Sequence[Tensor | None],
    sizes: Sequence[int | None],
    target: Any,
    samples: int,
) -> Presence:
    """The masks on the features' devices; a modality without features has no sample.

    Args:
        present: as `check_present` requires it.
        names: the modalities.
        features: M tensors; None if the encoder did not run.
        sizes: how many samples each of them has; None where that is not known.
        target: the batch's target.
        samples: the number of samples B.

    Raises:
        ValueError: features of some of the samples only, a mask of another shape, or
            one on the CPU that claims samples of an encoder that did not run.
    """
    device = next(x.device for x in features if x is not None)
    masks: list[Tensor | None] = []
    _check_whole_batch(present, names, sizes, target)
    for name, x in zip(names, features, strict=True):
        mask = present.get(name, True)
        if isinstance(mask, Tensor) and mask.shape != (samples,):
            raise ValueError(
                f"present[{name!r}] must be [{samples}], one entry for each sample, got {list(mask.shape)}"
            )
        if x is None:
            on_host = mask if isinstance(mask, bool) else mask.device.type == "cpu" and bool(mask.any())
            if on_host:
                raise ValueError(
                    f"present[{name!r}] says that samples have this modality, but its encoder did not run in the "
                    "forward pass; pass False, or run it"
                )
            mask = False
        if isinstance(mask, bool):
            masks.append(None if mask else torch.zeros(samples, dtype=torch.bool, device=device))
        else:
            masks.append(mask.to(device if x is None else x.device, non_blocking=True))
    full = torch.full((), samples, dtype=torch.float32, device=device)
    counts = [full if m is None else m.sum(dtype=torch.float32).to(device) for m in masks]
    return Presence(masks, torch.stack(counts))


def _check_whole_batch(
    present: Mapping[str, Tensor | bool], names: Sequence[str], sizes: Sequence[int | None], target: Any
) -> None:
    """Refuse features of only the samples that have the modality: which rows they are, the device alone knows."""
    given = first_tensor(target)
    for name, size in zip(names, sizes, strict=True):
        mask = present.get(name)
        if size is None or not isinstance(mask, Tensor) or mask.ndim != 1 or size >= len(mask):
            continue
        if given is None or len(given) == len(mask):
            raise ValueError(
                f"encoders[{name!r}] puts out features of {size} samples, and the batch has {len(mask)}: run the "
                "encoder on all of them, with zeros for the samples without the modality, so that row i belongs to "
                f"sample i; present[{name!r}] then leaves these out of its loss and score. Mask its features behind "
                "the encoder where the model must not use them"
            )
