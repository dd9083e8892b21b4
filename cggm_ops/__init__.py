"""Operators for gradient modulation on PyTorch: a public function, a definition and kernels for each."""

from cggm_ops import reference
from cggm_ops.backend import TRITON_OPERATORS, backend, build_info, missing_reason, use_backend
from cggm_ops.functional.modulation import batched_cosine, modulate_, scale_
from cggm_ops.functional.optimizers import AdamSettings, Modulation, SGDSettings, adamw_, sgd_
from cggm_ops.functional.segments import segment_combine_, segment_gram

__all__ = [
    "TRITON_OPERATORS",
    "AdamSettings",
    "Modulation",
    "SGDSettings",
    "adamw_",
    "backend",
    "batched_cosine",
    "build_info",
    "missing_reason",
    "modulate_",
    "reference",
    "scale_",
    "segment_combine_",
    "segment_gram",
    "sgd_",
    "use_backend",
]
