"""Calls a task's functions for all modalities, with the arguments that their signatures name."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Task


class TaskCalls:
    """A task's loss, score and confidence for M modalities at once.

    An output is None where the encoder did not run; its loss, score and confidence are NaN.

    Args:
        task: has `loss` and `score`, and perhaps `confidence` and `counted`.
        names: the modalities; None if no function of the task needs them.

    >>> import torch
    >>> from cggm.tasks import Classification
    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> TaskCalls(Classification()).scores([logits, None], target)
    [tensor(0.5000, dtype=torch.float64), tensor(nan, dtype=torch.float64)]
    """

    def __init__(self, task: Task, names: Sequence[str] | None = None) -> None:
        self.task = task
        self._names = names
        self._present: Sequence[Tensor | None] | None = None
        self._takes = {name: _keywords(getattr(task, name, None)) for name in ("loss", "score", "confidence")}

    @classmethod
    def of(cls, task: Task | TaskCalls) -> TaskCalls:
        """The calls of a task; calls themselves are returned unchanged."""
        return task if isinstance(task, TaskCalls) else cls(task)

    def among(self, present: Sequence[Tensor | None]) -> TaskCalls:
        """The same calls, with means over the samples that have each modality.

        Args:
            present: for each of M modalities, bool `[B]` or None for all samples.

        Raises:
            TypeError: `loss` or `score` takes no `present`.
        """
        for name in ("loss", "score"):
            if "present" not in self._takes[name]:
                raise self._no_present(name)
        calls = copy.copy(self)
        calls._present = present
        return calls

    def check_values(self, target: Any) -> None:
        """Have the task check the target's values, once before training, where it can: that may wait for the device."""
        check = getattr(self.task, "check_values", None)
        if check is not None:
            check(target)

    def losses(self, outputs: Sequence[Any], target: Any) -> list[Tensor]:
        """The M losses, 0-dimensional float32, with their graphs."""
        losses = [self._call("loss", i, output, target) for i, output in enumerate(outputs)]
        return _filled([None if loss is None else loss.float() for loss in losses])

    def scores(self, outputs: Sequence[Any], target: Any) -> list[Tensor]:
        """The M scores, 0-dimensional."""
        return _filled([self._call("score", i, output, target) for i, output in enumerate(outputs)])

    def confidences(
        self, outputs: Sequence[Any], target: Any, transform: Callable[[Tensor], Tensor] = lambda c: c
    ) -> list[Tensor]:
        """The M mean confidences in the truth, 0-dimensional float32, over the positions that count.

        Args:
            outputs: M outputs.
            target: the batch's target.
            transform: applied to the confidences before the mean.
        """
        counted = getattr(self.task, "counted", None)
        weights = None if counted is None else counted(target)  # [B], once for all modalities
        if weights is not None and self._present is None:
            weights = weights / weights.sum()
        return _filled([self._confidence(i, x, target, transform, weights) for i, x in enumerate(outputs)])

    def _confidence(
        self,
        index: int,
        output: Any,
        target: Any,
        transform: Callable[[Tensor], Tensor],
        weights: Tensor | None,
    ) -> Tensor | None:
        if output is None:
            return None
        present = None if self._present is None else self._present[index]
        if getattr(self.task, "confidence", None) is None:
            loss = self._call("loss", index, output, target)
            return transform((-loss.float()).exp())
        confidence = transform(self._call("confidence", index, output, target).float())
        if confidence.ndim == 0:
            if present is not None and "present" not in self._takes["confidence"]:
                raise self._no_present("confidence")
            return confidence
        if weights is None and present is None:
            return confidence.mean()
        if self._present is not None:
            ones = torch.ones_like(confidence) if weights is None else weights
            weights = ones if present is None else ones * present
            weights = weights / weights.sum()
        return torch.dot(confidence, weights)

    def _call(self, name: str, index: int, output: Any, target: Any) -> Tensor | None:
        if output is None:
            return None
        keywords: dict[str, Any] = {}
        if "modality" in self._takes[name] and self._names is not None:
            keywords["modality"] = self._names[index]
        if "present" in self._takes[name] and self._present is not None:
            keywords["present"] = self._present[index]
        try:
            return getattr(self.task, name)(output, target, **keywords)
        except IndexError as error:
            if "out of bounds" not in str(error):  # torch's own, on the CPU, for a class that there is not
                raise
            raise ValueError(
                f"target does not fit {name}() of {type(self.task).__name__}: {error}"
            ) from error

    def _no_present(self, name: str) -> TypeError:
        return TypeError(
            f"balance(present=...) needs a task that can leave samples out, and {name}() of "
            f"{type(self.task).__name__} takes no `present`: write {name}(self, output, target, present=None), a mean "
            "over the samples where present (bool [B], or None for all) is True"
        )


def _keywords(function: Callable | None) -> frozenset[str]:
    """Which of the optional arguments the function's signature names."""
    if function is None:
        return frozenset()
    return frozenset(inspect.signature(function).parameters) & {"modality", "present"}


def _filled(values: list[Tensor | None]) -> list[Tensor]:
    """NaN in place of None; at least one is a tensor."""
    like = next(value for value in values if value is not None).detach()
    return [like.new_full((), math.nan) if value is None else value for value in values]
