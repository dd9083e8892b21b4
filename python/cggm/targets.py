"""What every task asks of a target."""

from __future__ import annotations

from torch import Tensor


def check_batch(output: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless output and target hold equally many samples."""
    if target.ndim == 0 or target.shape[0] != output.shape[0]:
        raise ValueError(
            f"target must have one row per sample: the classifier's output is {list(output.shape)}, "
            f"the target {list(target.shape)}; pass balance() the target of the batch that was forwarded"
        )
