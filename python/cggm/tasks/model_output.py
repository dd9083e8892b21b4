"""Scores of a whole model's output, whatever its form, where there are no unimodal classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .base import Task, confidence_of
from .classification import Classification
from .registry import find_task


class ModelTask:
    """Reads a model's output for a task: a tensor, or an object or mapping with `logits` or `loss`.

    Args:
        task: a task or its name, or a function of output and target that returns a loss. None for the model's own
            loss where the output has one, and else `Classification()`.

    Raises:
        ValueError, TypeError: as `find_task`.

    >>> ModelTask(lambda output, target: output["loss"]).score({"loss": torch.tensor(2.0)}, None)
    tensor(-2.)
    """

    def __init__(self, task: str | Task | Callable[[Any, Any], Tensor] | None = None) -> None:
        self._function = task if _is_function(task) else None
        self._own = task is None  # the model's own loss comes first: it knows which tokens count
        self._checked = False  # whether the task has seen a target's values
        self._task = Classification() if self._own or self._function else find_task(task)  # type: ignore[arg-type]

    def loss(self, output: Any, target: Any) -> Tensor:
        """The loss of the model's output, 0-dimensional.

        Raises:
            TypeError: an output in which neither loss nor logits are found.
        """
        value = self._whole(output, target)
        return self._task.loss(_logits(output), target) if value is None else value

    def score(self, output: Any, target: Any) -> Tensor:
        """The task's score, or the negative loss where only that is known."""
        value = self._whole(output, target)
        return self._task.score(_logits(output), target) if value is None else -value

    def confidence(self, output: Any, target: Any) -> Tensor:
        """The task's confidence, or `exp(−loss)` where only the loss is known."""
        value = self._whole(output, target)
        if value is None:
            return confidence_of(self._task, _logits(output), target)
        return (-value.float()).exp()

    def counted(self, target: Any) -> Tensor | None:
        """How many positions of each sample count, `[B]`, where the task knows that; None for all."""
        counted = getattr(self._task, "counted", None)
        return counted(target) if counted is not None and isinstance(target, Tensor) else None

    def _whole(self, output: Any, target: Any) -> Tensor | None:
        """The loss that the function or the model gives for the whole output; None where the task reads logits."""
        if self._function is not None:
            value = self._function(output, target)
            if not isinstance(value, Tensor) or value.ndim:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"task must return a loss, a 0-dimensional tensor, got {found}")
            return value
        value = _field(output, "loss") if self._own else None
        if isinstance(value, Tensor):
            return value.mean()
        if not self._checked and isinstance(self._task, Classification):
            self._task.check_values(target)
        self._checked = True
        return None


def _is_function(task: Any) -> bool:
    return callable(task) and not isinstance(task, type) and not callable(getattr(task, "score", None))


def _field(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    return None if isinstance(output, Tensor) else getattr(output, name, None)


def _logits(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else _field(output, "logits")
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model puts out a {type(output).__name__} without logits, and the task cannot score it: pass a "
            "function that makes a loss of it, as task=lambda output, target: ..."
        )
    return logits
