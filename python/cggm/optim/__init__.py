"""How a step is taken: scaling, direction, fused kernels, checkpoints."""
