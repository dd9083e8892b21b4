"""The operators as Triton kernels; imported only where they are used, since torch's CPU builds come without Triton."""

from cggm_ops.triton.modulate import batched_cosine, batched_cosine_backward, modulate_, scale_
from cggm_ops.triton.optimizers import adamw_, sgd_
from cggm_ops.triton.segments import segment_combine_, segment_gram

__all__ = [
    "adamw_",
    "batched_cosine",
    "batched_cosine_backward",
    "modulate_",
    "scale_",
    "segment_combine_",
    "segment_gram",
    "sgd_",
]
