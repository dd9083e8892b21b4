"""Tasks: the loss that trains a unimodal classifier and the score that compares the modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Task(Protocol):
    """Two functions of a classifier's output and the target; implement both for a task of your own.

    Both return a 0-dimensional tensor on the output's device, the mean over the batch, without a host
    synchronisation. The score is "higher is better" and carries no gradient.
    """

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss that trains the unimodal classifier."""
        ...

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Score of the unimodal classifier on this batch."""
        ...


def _check_batch(output: Tensor, target: Tensor) -> None:
    if target.ndim == 0 or target.shape[0] != output.shape[0]:
        raise ValueError(
            f"target must have one row per sample: the classifier's output is {list(output.shape)}, "
            f"the target {list(target.shape)}; pass balance() the target of the batch that was forwarded"
        )


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One class per sample: cross entropy, and accuracy as the metric.

    Outputs are logits `[B, C]`; targets class indices `[B]` (integer) or class probabilities `[B, C]` (floating).

    Args:
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in `[0, 1]`.

    >>> task = Classification()
    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> task.score(logits, target)
    tensor(0.5000)
    """

    label_smoothing: float = 0.0

    def _check(self, output: Tensor, target: Tensor) -> None:
        _check_batch(output, target)
        indices = target.ndim == 1 and not target.is_floating_point()
        probabilities = target.shape == output.shape and target.is_floating_point()
        if not indices and not probabilities:
            raise ValueError(
                f"target must hold class indices [{output.shape[0]}] (integer) or class probabilities "
                f"{list(output.shape)} (floating), got {list(target.shape)} of {target.dtype}"
            )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over the batch.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        target = target.to(output.dtype) if target.is_floating_point() else target
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Accuracy in `[0, 1]`.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        target = target.argmax(-1) if target.is_floating_point() else target
        return (output.argmax(-1) == target).float().mean()


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Real targets: L1 or squared loss, and the negative mean absolute error as the metric.

    Outputs `[B]` or `[B, ...]`; targets have as many elements per sample.

    Args:
        kind: `"l1"` or `"mse"`.

    >>> Regression().score(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 2.0]))
    tensor(-1.)
    """

    kind: Literal["l1", "mse"] = "l1"

    def __post_init__(self) -> None:
        if self.kind not in ("l1", "mse"):
            raise ValueError(f"kind must be 'l1' or 'mse', got {self.kind!r}")

    def _target(self, output: Tensor, target: Tensor) -> Tensor:
        _check_batch(output, target)
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
        """Negative mean absolute error, `<= 0`.

        Raises:
            ValueError: a target with another number of elements.
        """
        return -F.l1_loss(output.detach(), self._target(output, target))


def find_task(task: str | Task) -> Task:
    """`"classification"`, `"regression"` or a `Task` of one's own.

    Raises:
        ValueError: another name.
        TypeError: neither a name nor an object with `loss` and `score`.

    >>> find_task("regression")
    Regression(kind='l1')
    """
    named = {"classification": Classification, "regression": Regression}
    if isinstance(task, str):
        if task not in named:
            raise ValueError(f"task must be one of {sorted(named)} or a Task of your own, got {task!r}")
        return named[task]()
    if not isinstance(task, Task):
        raise TypeError(f"task must have the two functions loss and score, got {type(task).__name__}")
    return task
