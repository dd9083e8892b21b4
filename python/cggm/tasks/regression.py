"""Regression: real-valued targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .base import check_batch


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Real targets: L1 or squared loss, and the negative mean absolute error as the metric.

    Outputs `[B]` or `[B, ...]`; targets have as many elements per sample.

    Args:
        kind: `"l1"` or `"mse"`.
        metric: another score of outputs and targets of one shape: 0-dimensional, higher is better.

    >>> Regression().score(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 2.0]))
    tensor(-1.)
    """

    kind: Literal["l1", "mse"] = "l1"
    metric: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("l1", "mse"):
            raise ValueError(f"kind must be 'l1' or 'mse', got {self.kind!r}")

    def _target(self, output: Tensor, target: Tensor) -> Tensor:
        check_batch(output, target)
        if target.numel() != output.numel():
            raise ValueError(
                f"target must have as many elements as the output {list(output.shape)}, got {list(target.shape)}"
            )
        return target.reshape(output.shape).to(output.dtype)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """L1 or mean squared error over all elements.

        Raises:
            ValueError: a target with another number of elements.
        """
        function = F.l1_loss if self.kind == "l1" else F.mse_loss
        return function(output, self._target(output, target))

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative mean absolute error, `<= 0`, or the user's metric.

        Raises:
            ValueError: a target with another number of elements.
        """
        output, target = output.detach(), self._target(output, target)
        return -F.l1_loss(output, target) if self.metric is None else self.metric(output, target)
