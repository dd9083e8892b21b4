"""What a task is, and what every task asks of a target."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Task(Protocol):
    """Two functions of a classifier's output and the target; implement both for a task of your own.

    Both return a 0-dimensional tensor on the output's device, the mean over the batch, without a host
    synchronisation. The score is "higher is better" and carries no gradient.

    A third one, `confidence(output, target) -> [B]`, may tell the probability that the output gives to the truth, per
    sample. OGM-GE and AGM compare confidences; where there is none, they take `exp(−loss)`.
    """

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss that trains the unimodal classifier."""
        ...

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Score of the unimodal classifier on this batch."""
        ...


def check_batch(output: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless output and target hold equally many samples."""
    if target.ndim == 0 or target.shape[0] != output.shape[0]:
        raise ValueError(
            f"target must have one row per sample: the classifier's output is {list(output.shape)}, "
            f"the target {list(target.shape)}; pass balance() the target of the batch that was forwarded"
        )
