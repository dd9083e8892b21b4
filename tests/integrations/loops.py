"""What several tests of integrations train: a Lightning module, and a model for the Trainer."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def lightning_module(*, returns_rows):
    """An audio-visual module; its training step returns a loss, or a mapping with the loss and the number of rows."""
    import lightning

    from with_accelerate import AudioVisual

    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AudioVisual()

        def configure_optimizers(self):
            encoders = {"audio": "model.audio", "image": "model.image"}
            base = torch.optim.SGD(self.parameters(), lr=0.1)
            return CGGMOptimizerWrapper(base, self, encoders=encoders, head="model.head", policy=CGGM())

        def training_step(self, batch, index):
            audio, image, target = batch
            loss = F.cross_entropy(self.model(audio, image), target)
            return {"loss": loss, "rows": len(target)} if returns_rows else loss

    return Plain()


def unlabelled_clip():
    """A model that takes labels and does not need them: the Trainer's loss function gets them."""
    from with_transformers import ClipClassifier

    class Unlabelled(ClipClassifier):
        def forward(self, input_ids, pixel_values, labels=None):
            return super().forward(input_ids, pixel_values, torch.zeros(len(input_ids), dtype=torch.long))

    torch.manual_seed(0)
    return Unlabelled()
