"""The optimizer step: gradient scaling, head direction, fused kernels and checkpoints."""
