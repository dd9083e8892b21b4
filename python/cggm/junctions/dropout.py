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
        self._names = tuple(names)
        self._model = model
        self._numbers: Tensor | None = None  # [M, 1, 1], what the draws are compared with
        # Who loses which modality, bool [B, 1]; kept for recomputation by checkpointing.
        self._drawn: dict[str, Tensor] = {}
        self._first: str | None = None  # whose run made the draw
        self._served: set[str] = set()  # who has used it, in this forward pass

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
                self._draw(samples, features.device)  # leaves the random numbers as the first run did
        elif not self._served or name in self._served:
            places = self._draw(samples, features.device).floor_()
            masks = (places == self._numbers_on(features.device)).unbind()  # all at once, for fewer launches
            self._drawn = dict(zip(self._names, masks, strict=True))
            self._first, self._served = name, {name}
        else:
            self._served.add(name)
        dropped = self._drawn.get(name)
        if dropped is None or dropped.shape[0] != samples:
            raise ValueError(
                f"encoder {name!r} puts out features {list(features.shape)} beside another encoder's of "
                f"{None if dropped is None else dropped.shape[0]} samples; modality dropout needs the samples "
                "in the first dimension of all features"
            )
        dropped = dropped.to(features.device)
        return dropped if features.ndim == 2 else dropped.view(-1, *[1] * (features.ndim - 1))

    def _draw(self, samples: int, device: torch.device) -> Tensor:
        """Uniform in `[0, M / p)`, `[B, 1]`: below M it falls into one of M equal parts, the modality to drop."""
        return torch.empty(samples, 1, device=device).uniform_(0, self._scale)

    def _numbers_on(self, device: torch.device) -> Tensor:
        """0, ..., M - 1, made once; a traced program makes its own, since it may not keep what it has made."""
        numbers = self._numbers
        if numbers is None or numbers.device != device or torch.compiler.is_compiling():
            numbers = torch.arange(len(self._names), dtype=torch.float32, device=device)[:, None, None]
            if not torch.compiler.is_compiling():
                self._numbers = numbers
        return numbers

    def forget(self) -> None:
        """The next encoder that runs makes a new draw."""
        self._served = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": None, "_drawn": {}, "_served": set()}


def without(features: Tensor, dropped: Tensor | None) -> Tensor:
    """A copy of the features `[B, ...]`, zero in the samples that have dropped them (bool `[B, 1, ...]`, None: nobody).

    >>> without(torch.ones(2, 2), torch.tensor([[True], [False]]))
    tensor([[0., 0.],
            [1., 1.]])
    """
    return features.clone() if dropped is None else features.masked_fill(dropped, 0)
