"""Regression: real-valued targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ..arguments import check_word
from .base import check_batch, fill_absent, mean_of_counted


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Real targets: L1 or squared loss, and the negative mean absolute error as the metric.

    Outputs `[B]` or `[B, ...]`; targets have as many elements per sample. NaN in a target, for a number that is not
    known, counts for nothing: loss and score are means over the others, and NaN if there are none; the wrapper then
    leaves the modality out of this step.

    Args:
        kind: `"l1"` or `"mse"`.
        metric: another score of outputs and targets of one shape: 0-dimensional, higher is better. It gets targets with
            their NaN.

    >>> Regression().score(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 2.0]))
    tensor(-1.)
    """

    kind: Literal["l1", "mse"] = "l1"
    metric: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_word("kind", self.kind, ("l1", "mse"))
        if self.metric is not None and not callable(self.metric):
            raise TypeError(f"metric must be a function of outputs and targets, or None, got {self.metric!r}")

    def _read(self, output: Tensor, target: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target in the output's shape and dtype, 0 where it does not count, and where it does."""
        check_batch(output, target)
        if target.numel() != output.numel():
            raise ValueError(
                f"target must have as many elements as the output {list(output.shape)}, got {list(target.shape)}"
            )
        target = target.reshape(output.shape).to(output.dtype)
        counted = ~target.isnan()
        if present is not None:
            counted = fill_absent(counted, present, False)
        return target.masked_fill(~counted, 0), counted

    def loss(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """L1 or mean squared error over the elements that count.

        Args:
            output: `[B]` or `[B, ...]`.
            target: as many elements per sample.
            present: bool `[B]`, the samples that count; None for all.

        Raises:
            ValueError: a target with another number of elements.
        """
        target, counted = self._read(output, target, present)
        function = F.l1_loss if self.kind == "l1" else F.mse_loss
        return mean_of_counted(function(output, target, reduction="none"), counted)

    def score(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Negative mean absolute error, `<= 0`, or the user's metric; arguments as in `loss`.

        Raises:
            ValueError: a target with another number of elements; `present` with a metric of the user's.
        """
        output = output.detach()
        read, counted = self._read(output, target, present)
        if self.metric is None:
            return -mean_of_counted((output - read).abs(), counted)
        if present is not None:
            raise ValueError(
                "present: Regression(metric=...) cannot leave samples out of a metric of outputs and targets; write a "
                "task of your own whose score() takes `present`"
            )
        return self.metric(output, target.reshape(output.shape).to(output.dtype))
