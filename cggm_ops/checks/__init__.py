"""Checks of the operators' arguments for the implementations in Python; csrc/check*.h hold the same rules."""

from cggm_ops.checks.tensors import DTYPES, is_dense

__all__ = ["DTYPES", "is_dense"]
