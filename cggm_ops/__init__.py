"""Custom operators for gradient modulation on PyTorch: a public function, a definition and kernels for each."""

from cggm_ops import reference
from cggm_ops.backend import backend, build_info, missing_reason, use_backend
from cggm_ops.networks import perceptrons
from cggm_ops.ops import batched_cosine, modulate_, scale_
from cggm_ops.optimizers import AdamSettings, Modulation, SGDSettings, adamw_, sgd_
from cggm_ops.segments import segment_combine_, segment_gram

__all__ = [
    "AdamSettings",
    "Modulation",
    "SGDSettings",
    "adamw_",
    "backend",
    "batched_cosine",
    "build_info",
    "missing_reason",
    "modulate_",
    "perceptrons",
    "reference",
    "scale_",
    "segment_combine_",
    "segment_gram",
    "sgd_",
    "use_backend",
]
