"""Tasks: the loss that trains a unimodal classifier, and the score that compares the modalities."""

from .base import Task
from .classification import Classification
from .model_output import ModelTask
from .multi_label import MultiLabel
from .registry import find_task
from .regression import Regression
from .segmentation import Segmentation

__all__ = ["Classification", "ModelTask", "MultiLabel", "Regression", "Segmentation", "Task", "find_task"]
