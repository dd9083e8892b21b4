"""The tasks that have a name."""

from __future__ import annotations

from .base import Task
from .classification import Classification, MultiLabel
from .regression import Regression
from .segmentation import Segmentation


def find_task(task: str | Task) -> Task:
    """`"classification"`, `"regression"`, `"segmentation"`, `"multi-label"` or a `Task` of one's own.

    Raises:
        ValueError: another name.
        TypeError: neither a name nor an object with `loss` and `score`.

    >>> find_task("multi-label")
    MultiLabel()
    """
    named = {
        "classification": Classification,
        "regression": Regression,
        "segmentation": Segmentation,
        "multi-label": MultiLabel,
    }
    if isinstance(task, str):
        if task not in named:
            raise ValueError(f"task must be one of {list(named)} or a Task of your own, got {task!r}")
        return named[task]()
    if not isinstance(task, Task):
        raise TypeError(f"task must have the two functions loss and score, got {type(task).__name__}")
    return task
