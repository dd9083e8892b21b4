"""Optimizer checkpoints without the wrapper."""

from .optim.checkpoint import plain_state_dict

__all__ = ["plain_state_dict"]
