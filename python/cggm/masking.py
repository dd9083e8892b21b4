"""Modality dropout's draws: which sample loses which modality before the fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ModalityMask:
    """One draw per sample and forward pass, shared by all encoders: with probability p, one modality is zeroed.

    A new draw is made by the first encoder that runs after `forget()`, or that runs again.

    Args:
        p: probability in `(0, 1]`.
        names: the modalities; each is dropped with probability `p / M`.
        model: dropout is off while it is in evaluation mode.
    """

    def __init__(self, p: float, names: Sequence[str], model: nn.Module) -> None:
        self.active = True
        self._scale = len(names) / p
        self._number = {name: i for i, name in enumerate(names)}
        self._model = model
        self._drawn: Tensor | None = None  # [B], whom to drop; kept for recomputation by checkpointing
        self._first: str | None = None  # whose run made the draw
        self._served: frozenset[str] = frozenset()  # who has used it, in this forward pass

    def dropped(self, features: Tensor, name: str, recomputing: bool) -> Tensor | None:
        """Which samples lose this modality, bool `[B, 1, ...]` beside features `[B, ...]`; None while it is off.

        Args:
            features: a modality's, samples in the first dimension.
            name: the modality.
            recomputing: whether activation checkpointing repeats a forward pass, which must meet the same draw.

        Raises:
            ValueError: another number of samples than the other modalities have.
        """
        if not (self.active and self._model.training):
            return None
        samples = features.shape[0] if features.ndim else 0
        if recomputing:
            if name == self._first:
                torch.rand(samples, device=features.device)  # leaves the random numbers as the first run did
        elif not self._served or name in self._served:
            # u < p falls into one of M equal parts of [0, p): the modality to drop
            self._drawn = torch.rand(samples, device=features.device).mul_(self._scale).floor_()
            self._first, self._served = name, frozenset({name})
        else:
            self._served = self._served | {name}
        if self._drawn is None or self._drawn.shape[0] != samples:
            raise ValueError(
                f"encoder {name!r} puts out features {list(features.shape)} beside another encoder's of "
                f"{None if self._drawn is None else self._drawn.shape[0]} samples; modality dropout needs the samples "
                "in the first dimension of all features"
            )
        dropped = self._drawn.to(features.device) == self._number[name]  # [B]
        return dropped.view(-1, *[1] * (features.ndim - 1))

    def forget(self) -> None:
        """The next encoder that runs makes a new draw."""
        self._served = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None, "_served": frozenset()}


def without(features: Tensor, dropped: Tensor | None) -> Tensor:
    """A copy of the features `[B, ...]`, zero in the samples that have dropped them (bool `[B, 1, ...]`, None: nobody).

    >>> without(torch.ones(2, 2), torch.tensor([[True], [False]]))
    tensor([[0., 0.],
            [1., 1.]])
    """
    return features.clone() if dropped is None else features.masked_fill(dropped, 0)
