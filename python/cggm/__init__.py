"""Balanced multimodal training: a drop-in optimizer wrapper that keeps every modality learning."""

from .optimizer import CGGMOptimizerWrapper
from .policies import CGGM, Policy, UnimodalLosses
from .tasks import Classification, Regression, Task

__all__ = [
    "CGGM",
    "CGGMOptimizerWrapper",
    "Classification",
    "Policy",
    "Regression",
    "Task",
    "UnimodalLosses",
]
