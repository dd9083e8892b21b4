"""The statistics in the trackers of Accelerate: TensorBoard, W&B, MLflow and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..optimizer import CGGMOptimizerWrapper

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


def log_statistics(
    accelerator: Accelerator, optimizer: CGGMOptimizerWrapper | AcceleratedOptimizer, *, step: int
) -> None:
    """Log the statistics of the last step to every tracker of `accelerator`; waits for the device.

    Args:
        accelerator: with `log_with=`, after `init_trackers()`.
        optimizer: the wrapper, as it is or as `prepare()` returned it.
        step: number of the step.

    Raises:
        TypeError: another optimizer.
    """
    wrapper = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(wrapper, CGGMOptimizerWrapper):
        raise TypeError(f"optimizer must be or hold a CGGMOptimizerWrapper, got {type(wrapper).__name__}")
    accelerator.log(wrapper.statistics.scalars(), step=step)
