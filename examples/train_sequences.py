"""Towers of convolutions over time, as MulT and MMSA have them: features `[B, C, T]`, of another length each.

`layout="B D T"` says so. The target is a sentiment, a real number. Run it with `python examples/train_sequences.py`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, Encoder

INPUTS, WIDTH = {"text": 12, "audio": 5, "vision": 7}, 8


class Sentiment(nn.Module):
    """A convolution per modality, an attention over all positions, a head on the mean."""

    def __init__(self):
        super().__init__()
        self.proj = nn.ModuleDict({name: nn.Conv1d(size, WIDTH, 1) for name, size in INPUTS.items()})
        self.attention = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.out_layer = nn.Linear(WIDTH, 1)

    def forward(self, **inputs):
        towers = [self.proj[name](x.transpose(1, 2)) for name, x in inputs.items()]  # [B, C, T] each
        return self.out_layer(self.attention(torch.cat(towers, 2).transpose(1, 2)).mean(1))


def reviews(count, size=32):
    """Sequences whose mean tells the sentiment: best in the text."""
    noise = {"text": 0.3, "audio": 1.0, "vision": 1.0}
    for _ in range(count):
        target = torch.randn(size, 1)
        yield (
            {
                name: target[:, None] + noise[name] * torch.randn(size, 4 + i, INPUTS[name])
                for i, name in enumerate(INPUTS)
            },
            target,
        )


def main(steps=60):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model = Sentiment()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.Adam(model.parameters(), lr=0.01),
        model,
        encoders={name: Encoder(f"proj.{name}", layout="B D T") for name in INPUTS},
        head="out_layer",
        task="regression",
    )
    losses = []
    for inputs, target in reviews(steps):
        loss = F.l1_loss(model(**inputs), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    losses, optimizer = main()
    scores = dict(zip(optimizer.modalities, optimizer.statistics["scores"].tolist(), strict=True))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, scores: {scores}")
