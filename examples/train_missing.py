"""Samples without a modality: some have no audio, some no image, and `present` says which.

The scores and the unimodal losses of a modality count the samples that have it. Run it with
`python examples/train_missing.py`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper

CLASSES = 4


class AudioImage(nn.Module):
    """Features of what is missing are zero before the fusion."""

    def __init__(self):
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))
        self.image = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, audio, image, present):
        audio = self.audio(audio) * present["audio"][:, None]
        image = self.image(image) * present["image"][:, None]
        return self.head(torch.cat([audio, image], 1).relu())


def batches(count, size=32):
    """Each class has a sound and a picture; a third of the sounds and a tenth of the pictures are missing."""
    sounds, pictures = torch.randn(CLASSES, 20), torch.randn(CLASSES, 30)
    for _ in range(count):
        target = torch.randint(CLASSES, (size,))
        audio, image = sounds[target] + torch.randn(size, 20), pictures[target] + 2 * torch.randn(size, 30)
        silent = torch.rand(size) < 1 / 3
        unseen = ~silent & (torch.rand(size) < 0.1)  # nothing is without both
        yield audio, image, target, {"audio": ~silent, "image": ~unseen}


def main(steps=60):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model = AudioImage()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"audio": "audio", "image": "image"},
        head="head",
    )
    losses = []
    for audio, image, target, present in batches(steps):
        loss = F.cross_entropy(model(audio, image, present), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target, present=present).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    losses, optimizer = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}", optimizer.statistics["scores"].tolist())
