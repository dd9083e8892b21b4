"""Random draws for modality dropout: which sample loses which modality before the fusion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layouts import Layout


class DropoutMask:
    """One draw per sample and forward pass, shared by all encoders: a sample loses one modality, or none.

    An encoder's k-th run after `forget()` uses the k-th draw. The first encoder that needs a draw makes it.

    Args:
        rates: for each modality, the probability that a sample loses it; the sum is at most 1.
        names: the modalities.
        model: dropout is off while this model is in evaluation mode.
    """

    def __init__(self, rates: Sequence[float], names: Sequence[str], model: nn.Module) -> None:
        self.active = True
        self._ends = list(itertools.accumulate(rates))
        self._names = tuple(names)
        self._model = model
        # [M], where each modality's part of [0, 1) ends, and 0, ..., M − 1 as [M, 1, 1]
        self._tables: tuple[Tensor, Tensor] | None = None
        # Which samples lose which modality, bool [B, 1], per draw; kept for recomputation by checkpointing.
        self._draws: list[dict[str, Tensor]] = []
        self._first: str | None = None  # the modality whose run made the last draw
        self._served: dict[str, int] = {}  # how many draws each modality has used

    def dropped(
        self, features: Tensor, name: str, recomputing: bool, layout: Layout | None = None
    ) -> Tensor | None:
        """Which samples lose this modality: bool `[B, 1, ...]` for features `[B, ...]`; None while dropout is off.

        Args:
            features: the modality's features.
            name: the modality.
            recomputing: True if activation checkpointing repeats a forward pass, which must use the same draw.
            layout: the axis that holds the samples; None for the first axis.

        Raises:
            ValueError: another number of samples than the other modalities have; features in groups `"(B T)"` of an
                encoder that runs first.
        """
        if not (self.active and self._model.training):
            return None
        number = self._number(name, recomputing)
        is_new = number == len(self._draws)
        samples = self._samples(features, name, layout, None if is_new else self._draws[number])
        if is_new:
            ends, numbers = self._tables_on(features.device)
            lost = torch.searchsorted(ends, self._draw(samples, features.device), right=True)  # M for none
            masks = (lost == numbers).unbind()  # all at once, for fewer launches
            self._draws.append(dict(zip(self._names, masks, strict=True)))
            self._first = name
        elif recomputing and name == self._first:
            self._draw(samples, features.device)  # advances the random number generator as the first run did
        dropped = self._draws[number].get(name)
        if dropped is None or dropped.shape[0] != samples:
            raise ValueError(
                f"encoder {name!r} puts out features {list(features.shape)} beside another encoder's of "
                f"{None if dropped is None else dropped.shape[0]} samples; modality dropout takes the first axis for "
                'the samples: say where they are, as in Encoder(..., layout="T B D"), or a policy without dropout, as '
                "policy=NormEqualization(bounded=True)"
            )
        dropped = dropped.to(features.device)
        if layout is not None:
            return layout.beside(dropped, features, name)
        return dropped if features.ndim == 2 else dropped.view(-1, *[1] * (features.ndim - 1))

    def _number(self, name: str, recomputing: bool) -> int:
        """Which draw this run uses; the next one counts as made from here on."""
        if recomputing:
            if len(self._draws) != 1:
                raise RuntimeError(
                    f"encoder {name!r}: activation checkpointing repeats one of {len(self._draws)} forward passes, and "
                    "modality dropout cannot tell which; balance() each by itself, or leave one of the two out"
                )
            return 0
        if not self._served:
            self._draws = []
        number = self._served.get(name, 0)
        self._served[name] = number + 1
        return number

    def _samples(
        self, features: Tensor, name: str, layout: Layout | None, drawn: dict[str, Tensor] | None
    ) -> int:
        samples = features.shape[0] if layout is None and features.ndim else 0
        if layout is not None:
            samples = layout.samples(features, name)
        if samples is None and drawn is None:
            raise ValueError(
                f'encoders[{name!r}]: layout="{layout.text}" does not tell modality dropout how many samples there '
                "are, and this encoder runs first: write the number of rows of each sample into it, as in "
                '"(B 3) D H W"'
            )
        return drawn[name].shape[0] if samples is None else samples

    def drawn(self, number: int) -> int | None:
        """How many samples the k-th draw of this step was for; None if dropout did not act."""
        if not self._served or number >= len(self._draws):
            return None
        return next(iter(self._draws[number].values())).shape[0]

    def keep_draws(self, numbers: Sequence[int]) -> None:
        """Drop all other draws: the forward passes that used them were abandoned."""
        if self._served:
            self._draws = [self._draws[number] for number in numbers]

    def _draw(self, samples: int, device: torch.device) -> Tensor:
        """Uniform in `[0, 1)`, `[B, 1]`."""
        return torch.rand(samples, 1, device=device)

    def set_rates(self, rates: Tensor) -> None:
        """Drop modalities at these rates `[M]` from the next forward pass on."""
        ends, _ = self._tables_on(rates.device)
        ends.copy_(rates.cumsum(0))  # in place: a captured CUDA graph replays onto this address

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Created once and moved to the features' device; a traced program must not keep tensors it created."""
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
        """Drop all draws; the next encoder that runs makes a new one."""
        self._served = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_draws": [], "_served": {}}


def zero_dropped(features: Tensor, dropped: Tensor | None, fill: float = 0.0) -> Tensor:
    """A copy of the features `[B, ...]`, `fill` in the samples that have dropped them (bool `[B, 1, ...]`; None: none).

    >>> zero_dropped(torch.ones(2, 2), torch.tensor([[True], [False]]))
    tensor([[0., 0.],
            [1., 1.]])
    """
    return features.clone() if dropped is None else features.masked_fill(dropped, fill)
