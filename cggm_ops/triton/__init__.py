"""The operators that pay as Triton kernels; imported on first use, because torch's CPU builds come without Triton."""

from cggm_ops.triton.modulation import batched_cosine, batched_cosine_backward, modulate_, scale_
from cggm_ops.triton.optimizers import adamw_

__all__ = ["adamw_", "batched_cosine", "batched_cosine_backward", "modulate_", "scale_"]
