"""Tasks: the loss that trains a unimodal classifier, and the score that compares the modalities."""

from .base import Task
from .classification import Classification, MultiLabel
from .registry import find_task
from .regression import Regression
from .segmentation import Segmentation

__all__ = ["Classification", "MultiLabel", "Regression", "Segmentation", "Task", "find_task"]
