"""Measurements from the last balanced step, as device tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Statistics(Mapping[str, Tensor]):
    """What the last balanced step measured and did, on the device; `[M]` each but for `loss`.

    Always there: `scores`, `coefficients`, `cosines` (head's gradient against each classifier's), `grad_norms`, and of
    the last micro-batch of this process `loss` (the multimodal one alone) and `unimodal_losses`. With dropout:
    `dropout_rates`. With `optimizer.record = True`: `unimodal_shares`, `angles` (degrees) and `step_changes` of a
    combiner. With unimodal classifiers: `skipped`, the number of unimodal losses left out since the wrapper was made
    because they were not finite; no checkpoint holds it. A score that is not finite did not count.

    Reading an entry never waits for the device; `.tolist()`, `print(statistics)` and `scalars()` do. `grad_norms` are
    those of the step. If the step did not need them, the first read computes them from the gradients, so read them
    before `zero_grad()` and the next backward pass, or set `optimizer.record = True`; the entry is gone afterwards.

    Args:
        values: the entries.
        modalities: their names, for printing.
        later: entries that are computed when they are first read.

    >>> statistics = Statistics({"scores": torch.zeros(2), "loss": torch.tensor(0.25)}, ("audio", "image"),
    ...                         grad_norms=lambda: torch.ones(2))
    >>> sorted(statistics), statistics["grad_norms"]
    (['grad_norms', 'loss', 'scores'], tensor([1., 1.]))
    >>> print(statistics)
                       audio    image
    scores                 0        0
    loss                0.25
    grad_norms             1        1
    """

    def __init__(
        self, values: Mapping[str, Tensor], modalities: Sequence[str] = (), **later: Callable[[], Tensor]
    ) -> None:
        self.modalities = tuple(modalities)
        self._values = dict(values)
        self._later = {name: function for name, function in later.items() if name not in values}
        self._closed: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._later:
            self._values[name] = self._later[name]()
            del self._later[name]
        if name in self._closed:
            raise KeyError(
                f"{name!r}: nobody read it before the gradients changed; read it after step() and before zero_grad(), "
                "or set optimizer.record = True"
            )
        if name not in self._values:
            raise KeyError(f"{name!r}: no balanced step has measured that yet, only {sorted(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._values, **self._later})

    def __len__(self) -> int:
        return len(self._values) + len(self._later)

    def close(self) -> None:
        """Drop `grad_norms` if nobody has read it: the gradients it comes from are about to change."""
        if self._later.pop("grad_norms", None) is not None:
            self._closed.add("grad_norms")

    def scalars(self) -> dict[str, float]:
        """`"name/modality"` -> number for dashboards, and `"loss"`; waits for the device once.

        >>> Statistics({"scores": torch.tensor([1.0, 2.0])}, ("audio", "image")).scalars()
        {'scores/audio': 1.0, 'scores/image': 2.0}
        """
        names: list[str] = []
        for name, value in self.items():
            names += [f"{name}/{modality}" for modality in self.modalities] if value.ndim else [name]
        values = [value.detach().double().flatten() for value in self.values()]
        return dict(zip(names, torch.cat(values).tolist(), strict=True)) if values else {}

    def __str__(self) -> str:
        if not len(self):
            return "no balanced step yet"
        found = self.scalars()
        lines = [[""] + [f"{modality:>8}" for modality in self.modalities]]
        for name, value in self.items():
            keys = [f"{name}/{modality}" for modality in self.modalities] if value.ndim else [name]
            lines.append([name] + [f"{found[key]:>8.4g}" for key in keys])
        return "\n".join(f"{name:15} " + " ".join(cells) for name, *cells in lines)
