"""Balanced multimodal training: a drop-in optimizer wrapper that keeps every modality learning."""

from .diagnosis import diagnose
from .model.encoder import Encoder
from .optim.checkpoint import plain_state_dict
from .optimizer import CGGMOptimizerWrapper
from .policies import CGGM, ModalityDropout, NormEqualization, Policy, UnimodalLosses, default_policy
from .policies.scores import ClassifierScores, MaskedScores, RetrievalScores
from .recorder import Recorder
from .tasks import Classification, MultiLabel, Regression, Segmentation, Task

__version__ = "0.2.0"

__all__ = [
    "CGGM",
    "CGGMOptimizerWrapper",
    "Classification",
    "ClassifierScores",
    "Encoder",
    "MaskedScores",
    "ModalityDropout",
    "MultiLabel",
    "NormEqualization",
    "Policy",
    "Recorder",
    "Regression",
    "RetrievalScores",
    "Segmentation",
    "Task",
    "UnimodalLosses",
    "default_policy",
    "diagnose",
    "plain_state_dict",
]
