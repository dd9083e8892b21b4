"""The operators in plain PyTorch: their definition, and the default where no kernel serves the device.

Sums are taken in float64. Gradients are multiplied in float32 (float64 for float64) and rounded once.
"""

from cggm_ops.reference.modulation import (
    batched_cosine,
    batched_cosine_backward,
    cosine_dtype,
    head_products,
    modulate_,
    scale_,
)
from cggm_ops.reference.optimizers import adamw_, sgd_
from cggm_ops.reference.segments import segment_combine_, segment_gram

__all__ = [
    "adamw_",
    "batched_cosine",
    "batched_cosine_backward",
    "cosine_dtype",
    "head_products",
    "modulate_",
    "scale_",
    "segment_combine_",
    "segment_gram",
    "sgd_",
]
