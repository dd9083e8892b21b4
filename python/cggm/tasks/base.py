"""What a task is, and what every task asks of a target."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """The loss that trains a unimodal classifier, and the score that compares the modalities.

    Write `loss` and `score` for a task of your own. Both return a 0-dimensional tensor on the output's device, the
    mean over the batch, without a host synchronization. The score is "higher is better" and carries no gradient.
    `confidence` is what OGM-GE and AGM compare; inherit its default from this class or leave it out.
    """

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss that trains the unimodal classifier."""
        ...

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Score of the unimodal classifier on this batch."""
        ...

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` that the output gives to the truth, sample by sample.

        By default `exp(−loss)`, one number for the batch, which for a single sample of a classification is the same.
        """
        return (-self.loss(output, target).float()).exp()


def confidence_of(task: Any, output: Tensor, target: Tensor) -> Tensor:
    """The task's `confidence`, or the default of `Task` where the task has none."""
    own = getattr(task, "confidence", None)
    return Task.confidence(task, output, target) if own is None else own(output, target)


def check_batch(output: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless output and target hold equally many samples."""
    if target.ndim == 0 or target.shape[0] != output.shape[0]:
        raise ValueError(
            f"target must have one row per sample: the classifier's output is {list(output.shape)}, "
            f"the target {list(target.shape)}; pass balance() the target of the batch that was forwarded"
        )
