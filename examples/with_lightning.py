"""Balanced training with Lightning, with automatic and with manual optimization."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cggm import CGGM, CGGMOptimizerWrapper
from with_accelerate import AudioVisual, data


class Balanced(lightning.LightningModule):
    """The wrapper is the module's optimizer; `balance` stands in `training_step`."""

    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        self.model = AudioVisual()
        self.automatic_optimization = automatic
        self.losses: list[float] = []

    def configure_optimizers(self) -> Any:
        """AdamW in the wrapper, and a schedule of the learning rate."""
        self.optimizer = CGGMOptimizerWrapper(
            torch.optim.AdamW(self.parameters(), lr=3e-3),
            self,
            encoders={"audio": "model.audio", "image": "model.image"},
            head="model.head",
            policy=CGGM(lam=0.1),
        )
        schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.5, total_iters=64)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, index: int) -> torch.Tensor | None:
        """Loss of a batch, balanced; with manual optimization the step too."""
        audio, image, target = batch
        loss = F.cross_entropy(self.model(audio, image), target)
        self.losses.append(loss.item())
        loss = self.optimizer.balance(loss, target)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.optimizer.modulate()
        self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()
        self.lr_schedulers().step()
        return None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Lightning clips right after this."""
        self.optimizer.modulate()


def main(automatic: bool = True, epochs: int = 4, resume: str | None = None, **options: Any) -> Balanced:
    """Train, from a checkpoint perhaps."""
    lightning.seed_everything(0, verbose=False)
    module = Balanced(automatic)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0 if automatic else None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, DataLoader(data(), batch_size=32), ckpt_path=resume)
    return module


if __name__ == "__main__":
    trained: nn.Module = main()
    print(trained.losses[::16])
