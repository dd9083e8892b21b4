"""The tasks that have a name."""

from __future__ import annotations

from .base import Task
from .classification import Classification
from .multi_label import MultiLabel
from .regression import Regression
from .segmentation import Segmentation

TASKS = {
    "classification": Classification,
    "regression": Regression,
    "segmentation": Segmentation,
    "multi-label": MultiLabel,
}


def find_task(task: str | Task) -> Task:
    """`"classification"`, `"regression"`, `"segmentation"`, `"multi-label"` or a `Task` of one's own.

    Raises:
        ValueError: another name.
        TypeError: neither a name nor an object with `loss` and `score`.

    >>> find_task("multi-label")
    MultiLabel()
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)} or a Task of your own, got {task!r}")
        return TASKS[task]()
    if isinstance(task, type):
        raise TypeError(f"task must be an object, not a class: pass {task.__name__}()")
    missing = [name for name in ("loss", "score") if not callable(getattr(task, name, None))]
    if missing:
        raise TypeError(
            f"task must have the two functions loss and score, but {type(task).__name__} has no {missing}"
        )
    return task
