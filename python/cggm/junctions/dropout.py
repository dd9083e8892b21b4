"""Modality dropout's draws: which sample loses which modality before the fusion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DropoutMask:
    """One draw per sample and forward pass, shared by all encoders: a sample loses one modality, or none.

    The first encoder that runs after `forget()`, or that runs again, makes a new draw.

    Args:
        rates: the probability that a sample loses modality i; at most 1 together.
        names: the modalities.
        model: dropout is off while it is in evaluation mode.
    """

    def __init__(self, rates: Sequence[float], names: Sequence[str], model: nn.Module) -> None:
        self.active = True
        self._ends = list(itertools.accumulate(rates))
        self._names = tuple(names)
        self._model = model
        # [M], where each modality's part of [0, 1) ends, and 0, ..., M − 1 as [M, 1, 1]
        self._tables: tuple[Tensor, Tensor] | None = None
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
            ends, numbers = self._tables_on(features.device)
            lost = torch.searchsorted(ends, self._draw(samples, features.device), right=True)  # M for none
            masks = (lost == numbers).unbind()  # all at once, for fewer launches
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
        """Uniform in `[0, 1)`, `[B, 1]`."""
        return torch.rand(samples, 1, device=device)

    def set_rates(self, rates: Tensor) -> None:
        """Drop modalities at these rates `[M]` from the next forward pass on."""
        ends, _ = self._tables_on(rates.device)
        ends.copy_(rates.cumsum(0))  # in place: a captured CUDA graph replays onto this address

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Made once, and moved with the features; a traced program may not keep what it has made."""
        tables = self._tables
        if tables is None:
            numbers = torch.arange(len(self._names), device=device)[:, None, None]
            tables = torch.tensor(self._ends, dtype=torch.float32, device=device), numbers
        elif tables[0].device != device:
            tables = tables[0].to(device), tables[1].to(device)
        if not torch.compiler.is_compiling():
            self._tables = tables
        return tables

    def forget(self) -> None:
        """The next encoder that runs makes a new draw."""
        self._served = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": {}, "_served": set()}


def zero_dropped(features: Tensor, dropped: Tensor | None) -> Tensor:
    """A copy of the features `[B, ...]`, zero in the samples that have dropped them (bool `[B, 1, ...]`; None: none).

    >>> zero_dropped(torch.ones(2, 2), torch.tensor([[True], [False]]))
    tensor([[0., 0.],
            [1., 1.]])
    """
    return features.clone() if dropped is None else features.masked_fill(dropped, 0)
