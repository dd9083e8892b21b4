"""Measurements from the last balanced step, as device tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class Statistics(Mapping[str, Tensor]):
    """`scores`, `coefficients`, `cosines` and `grad_norms` of the last step, each `[M]` and on the device.

    A score that is not finite had nothing to measure, and did not count. `skipped` counts the unimodal losses that were
    left out because they were not finite, from when the wrapper was made to the first read; no checkpoint holds it.

    Reading an entry never waits for the device; calling `.tolist()` on it does. If the step did not need
    `grad_norms`, the first read computes them from the gradients at that moment.

    >>> import torch
    >>> statistics = Statistics({"scores": torch.zeros(2)}, grad_norms=lambda: torch.ones(2))
    >>> sorted(statistics), statistics["grad_norms"]
    (['grad_norms', 'scores'], tensor([1., 1.]))
    """

    def __init__(self, values: Mapping[str, Tensor], **later: Callable[[], Tensor]) -> None:
        self._values = dict(values)
        self._later = {name: function for name, function in later.items() if name not in values}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._later:
            self._values[name] = self._later[name]()
            del self._later[name]
        if name not in self._values:
            raise KeyError(f"{name!r}: no balanced step has measured that yet, only {sorted(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._values, **self._later})

    def __len__(self) -> int:
        return len(self._values) + len(self._later)
