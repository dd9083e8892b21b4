"""Balanced training with Accelerate: accumulation, bfloat16 autocast and clipping; `accelerate launch` runs it too."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cggm import CGGM, CGGMOptimizerWrapper


class AudioVisual(nn.Module):
    """Two encoders, concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))
        self.image = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(32, 5)

    def forward(self, audio: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Logits `[B, 5]` of audio `[B, 20]` and images `[B, 30]`."""
        return self.head(torch.cat([self.audio(audio), self.image(image)], 1).relu())


def data(samples: int = 512) -> TensorDataset:
    """Classes that depend on both modalities."""
    generator = torch.Generator().manual_seed(0)
    audio, image = (
        torch.randn(samples, 20, generator=generator),
        torch.randn(samples, 30, generator=generator),
    )
    target = (audio[:, :5] + image[:, :5]).argmax(1)
    return TensorDataset(audio, image, target)


def main(mixed_precision: str = "bf16", epochs: int = 4) -> list[float]:
    """Train, and return the mean loss of every epoch."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=2)
    model = AudioVisual()
    balanced = CGGMOptimizerWrapper(
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        model,
        encoders={"audio": "audio", "image": "image"},
        head="head",
        policy=CGGM(lam=0.1),
    )
    model, optimizer, loader = accelerator.prepare(model, balanced, DataLoader(data(), batch_size=32))
    history = []
    for _ in range(epochs):
        losses = []
        for audio, image, target in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(audio, image), target)
                losses.append(loss.item())
                accelerator.backward(balanced.balance(loss, target))
                if accelerator.sync_gradients:
                    balanced.modulate()
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        history.append(sum(losses) / len(losses))
    return history


if __name__ == "__main__":
    print(main())
