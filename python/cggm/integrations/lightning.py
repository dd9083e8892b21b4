"""A callback for Lightning: balances the loss of `training_step`, and logs the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning
from torch import Tensor

from ..optimizer import CGGMOptimizerWrapper


class BalanceCallback(lightning.Callback):
    """Balances a module with automatic optimization whose `configure_optimizers` returns one wrapper.

    It calls `balance()` on the loss that `training_step` returns, and `modulate()` before Lightning clips. While
    training runs, `training_step` of the module is replaced by one that does this.

    Args:
        target: batch -> target.
        every: steps between two entries in the trainer's loggers.

    >>> callback = BalanceCallback(target=lambda batch: batch[-1])
    >>> trainer = lightning.Trainer(callbacks=[callback], logger=False, accelerator="cpu", enable_checkpointing=False)
    """

    def __init__(self, target: Callable[[Any], Tensor], *, every: int = 50) -> None:
        self.target, self.every = target, every

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the wrapper, and balance what `training_step` returns from now on."""
        found = [each for each in trainer.optimizers if isinstance(each, CGGMOptimizerWrapper)]
        if len(found) != 1 or not pl_module.automatic_optimization:
            raise ValueError(
                f"BalanceCallback needs automatic optimization and one CGGMOptimizerWrapper, found {len(found)}; with "
                "manual optimization call optimizer.balance(loss, target) in training_step"
            )
        (self.optimizer,) = found
        step = pl_module.training_step

        def balanced(batch: Any, *arguments: Any, **keywords: Any) -> Any:
            result = step(batch, *arguments, **keywords)
            if isinstance(result, Mapping):
                return {**result, "loss": self.optimizer.balance(result["loss"], self.target(batch))}
            return None if result is None else self.optimizer.balance(result, self.target(batch))

        pl_module.training_step = balanced  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Lightning clips right after this."""
        self.optimizer.modulate()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Log the statistics of the last step."""
        if trainer.global_step % self.every == 0 and len(self.optimizer.statistics):
            for logger in trainer.loggers:
                logger.log_metrics(self.optimizer.statistics.scalars(), trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own `training_step` back, also after an error."""
        pl_module.__dict__.pop("training_step", None)
