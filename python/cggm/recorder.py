"""A record of the statistics of every step, kept on the device until it is read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .optimizer import CGGMOptimizerWrapper

_POINTS = 400  # points of a curve at most


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
        self._whole: set[str] = set()  # statistics of the whole model, such as its loss
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
        size = (len(self.optimizer.modalities),)
        values = [statistics[name].detach().float() for name in names]
        step = torch.stack([value.expand(size) for value in values])
        self._whole = {name for name, value in zip(names, values, strict=True) if not value.ndim}
        self._names = names
        self._steps.append(step)

    def __len__(self) -> int:
        return len(self._steps)

    def history(self) -> dict[str, Tensor]:
        """Statistic -> float32 tensor `[steps, M]` on the CPU, `[steps]` of the whole model, in one transfer."""
        if not self._steps:
            return {}
        steps = torch.stack(self._steps).cpu()  # [steps, K, M]
        return {
            name: steps[:, k, 0] if name in self._whole else steps[:, k] for k, name in enumerate(self._names)
        }

    def rows(self) -> Iterator[dict[str, float]]:
        """A mapping per recorded step: `"step"`, from 1, and `"statistic/modality"` or `"statistic"` -> number."""
        history = self.history()
        for step in range(len(self)):
            row: dict[str, float] = {"step": step + 1}
            for name, values in history.items():
                if values.ndim == 1:
                    row[name] = values[step].item()
                else:
                    keys = (f"{name}/{modality}" for modality in self.optimizer.modalities)
                    row.update(zip(keys, values[step].tolist(), strict=True))
            yield row

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a line per step, with the columns of `rows()`.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        self._check_recorded("to_csv()")
        rows = list(self.rows())
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def to_dataframe(self) -> Any:
        """A pandas `DataFrame` with a row per step, and the columns of `rows()`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
            RuntimeError: nothing has been recorded.
        """
        self._check_recorded("to_dataframe()")
        import pandas

        return pandas.DataFrame(self.rows()).set_index("step")

    def to_tensorboard(self, writer: Any) -> None:
        """Add every number as a scalar.

        Args:
            writer: has `add_scalar(name, value, step)`, as `torch.utils.tensorboard.SummaryWriter` has.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        self._check_recorded("to_tensorboard()")
        for row in self.rows():
            step = row.pop("step")
            for name, value in row.items():
                writer.add_scalar(name, value, step)

    def plot(self, path: str | PathLike[str], statistics: Sequence[str] | None = None) -> None:
        """Draw statistics over the steps into a picture, a row each; long runs as means over parts of the run.

        Args:
            path: file to write, `.png`, `.pdf` or `.svg`; the ending decides which kind.
            statistics: which ones; None for all that were recorded.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; `pip install "cggm[demo]"` brings it.
            RuntimeError: nothing has been recorded.
            ValueError: a statistic that was not recorded.
        """
        self._check_recorded("plot()")
        from matplotlib.figure import Figure

        history = self.history()
        shown = list(history) if statistics is None else list(statistics)
        unknown = [name for name in shown if name not in history]
        if unknown or not shown:
            raise ValueError(f"statistics must be some of {list(history)}, got {unknown or shown}")
        figure = Figure(figsize=(8, 1.2 + 1.8 * len(shown)), layout="constrained")
        for axes, name in zip(
            figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0], shown, strict=True
        ):
            values = history[name].reshape(len(self), -1)  # [steps, M or 1]
            size = -(-len(self) // _POINTS)
            parts = values.split(size)
            means = torch.stack([part.nanmean(0) for part in parts])
            steps = [1 + size * i + (len(part) - 1) / 2 for i, part in enumerate(parts)]
            labels = self.optimizer.modalities if history[name].ndim == 2 else ("model",)
            for label, curve in zip(labels, means.T, strict=True):
                axes.plot(steps, curve, label=label, linewidth=1.2)
            axes.set_ylabel(name.replace("_", " "))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        axes.set_xlabel("step")
        figure.savefig(path, dpi=150)

    def _check_recorded(self, what: str) -> None:
        if not self._steps:
            raise RuntimeError(f"{what} needs something recorded: call record() after step()")
