"""A record of the statistics of every step, kept on the device until it is read."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .optimizer import CGGMOptimizerWrapper


class Recorder:
    """Keeps the optimizer's statistics of every step, without waiting for the device.

    Args:
        optimizer: the wrapper whose `statistics` are kept.

    >>> from cggm import CGGMOptimizerWrapper
    >>> class Model(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(5, 4), torch.nn.Linear(8, 2)
    ...     def forward(self, a, b):
    ...         return self.head(torch.cat([self.a(a), self.b(b)], 1))
    >>> model = Model()
    >>> optimizer = CGGMOptimizerWrapper(torch.optim.SGD(model.parameters(), lr=0.1), model,
    ...                                  encoders={"a": "a", "b": "b"}, head="head")
    >>> recorder = Recorder(optimizer)
    >>> for _ in range(3):
    ...     target = torch.randint(2, (6,))
    ...     loss = torch.nn.functional.cross_entropy(model(torch.randn(6, 3), torch.randn(6, 5)), target)
    ...     optimizer.balance(loss, target).backward()
    ...     optimizer.step()
    ...     recorder.record()
    >>> recorder.history()["coefficients"].shape
    torch.Size([3, 2])
    """

    def __init__(self, optimizer: CGGMOptimizerWrapper) -> None:
        self.optimizer = optimizer
        self._names: tuple[str, ...] = ()
        self._steps: list[Tensor] = []  # [K, M] each, K statistics

    def record(self) -> None:
        """Keep the statistics of the step just taken; call it after `optimizer.step()`.

        Raises:
            RuntimeError: there has been no balanced step, or this one measured other statistics than the first.
        """
        statistics = self.optimizer.statistics
        names = tuple(sorted(statistics))
        if not names:
            raise RuntimeError(
                "record() needs a balanced step: call it after balance(), backward() and step()"
            )
        if self._steps and names != self._names:
            raise RuntimeError(f"statistics are now {list(names)}, but the record has {list(self._names)}")
        # One stack copies them all: the wrapper reuses its tensors.
        step = torch.stack([statistics[name].detach().float() for name in names])
        self._names = names
        self._steps.append(step)

    def __len__(self) -> int:
        return len(self._steps)

    def history(self) -> dict[str, Tensor]:
        """Statistic -> float32 tensor `[steps, M]` on the CPU, in one transfer; empty before the first record."""
        if not self._steps:
            return {}
        steps = torch.stack(self._steps).cpu()  # [steps, K, M]
        return {name: steps[:, k] for k, name in enumerate(self._names)}

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw coefficients and scores over the steps into a picture.

        Args:
            path: file to write, `.png`, `.pdf` or `.svg`; the ending decides which kind.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; `pip install "cggm[demo]"` brings it.
            RuntimeError: nothing has been recorded.
        """
        if not self._steps:
            raise RuntimeError("plot() needs something recorded: call record() after step()")
        from matplotlib.figure import Figure

        history = self.history()
        shown = [name for name in ("coefficients", "scores") if name in history]
        figure = Figure(figsize=(8, 2.6 * len(shown)), layout="constrained")
        for axes, name in zip(
            figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0], shown, strict=True
        ):
            for modality, values in zip(self.optimizer.modalities, history[name].T, strict=True):
                axes.plot(range(1, len(values) + 1), values, label=modality, linewidth=1.2)
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        axes.set_xlabel("step")
        figure.axes[0].legend(frameon=False)
        figure.savefig(path, dpi=150)
