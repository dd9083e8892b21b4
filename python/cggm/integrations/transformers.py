"""A callback for the Trainer of transformers: balances the loss, and logs the statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from ..optimizer import CGGMOptimizerWrapper


class BalanceCallback(TrainerCallback):
    """One object for `callbacks` and, as `.loss`, for `compute_loss_func`; the Trainer needs no subclass.

    `Trainer(..., optimizers=(optimizer, None), compute_loss_func=balance.loss, callbacks=[balance])`. The statistics
    go into the Trainer's log. Reporters see them if they come later: `report_to="none"` and
    `callbacks=[balance, TensorBoardCallback()]`.

    Args:
        optimizer: the wrapper.
        loss: of the model's output and the labels; by default cross entropy of `output["logits"]`.
    """

    def __init__(
        self, optimizer: CGGMOptimizerWrapper, *, loss: Callable[[Any, Tensor], Tensor] | None = None
    ) -> None:
        self.optimizer = optimizer
        self._plain = loss or (lambda output, labels: F.cross_entropy(output["logits"], labels))
        self._parts = 1

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The balanced loss, divided for accumulation; in evaluation the plain one.

        Raises:
            ValueError: the Trainer found no labels in the batch.
        """
        if labels is None:
            raise ValueError(
                "the Trainer found no labels: where the model's forward has no argument with 'label' in its name, pass "
                "label_names=['labels'] to TrainingArguments, with the key of your batches"
            )
        loss = self._plain(outputs, labels)
        return self.optimizer.balance(loss, labels) / self._parts if torch.is_grad_enabled() else loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read how many micro-batches a step has; refuse clipping before the coefficients act."""
        if self.optimizer.scale_target == "gradient" and args.max_grad_norm:
            raise ValueError(
                "the Trainer clips before the coefficients scale the gradients: set max_grad_norm=0 in its arguments, "
                f"and optimizer.max_norm = {args.max_grad_norm} instead"
            )
        self._parts = args.gradient_accumulation_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Add the statistics of the last step to the log of the training loss."""
        if logs is not None and "loss" in logs:
            found = {f"balance/{name}": value for name, value in self.optimizer.statistics.scalars().items()}
            logs.update(found)
            state.log_history[-1].update(found)
