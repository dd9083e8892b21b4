"""Balanced multimodal training: a drop-in optimizer wrapper that keeps every modality learning."""

from .optimizer import CGGMOptimizerWrapper
from .policies import CGGM, ModalityDropout, NormEqualization, Policy, UnimodalLosses
from .tasks import Classification, Regression, Segmentation, Task

__version__ = "0.1.0"

__all__ = [
    "CGGM",
    "CGGMOptimizerWrapper",
    "Classification",
    "ModalityDropout",
    "NormEqualization",
    "Policy",
    "Regression",
    "Segmentation",
    "Task",
    "UnimodalLosses",
]
