"""OGM-GE's architecture as released: frames in the batch axis, pooled after the encoders, and one of four fusions.

The method's confidences come from unimodal classifiers, which fit every fusion, and `layout` says what the encoder's
axes are. Run it with `python examples/train_ogm_ge.py`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, Encoder
from cggm.policies import OGMGE

WIDTH, CLASSES, FRAMES = 16, 4, 2


class Fusion(nn.Module):
    """A sum, a concatenation, FiLM or a gate; `fc_out` is the output layer of each."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        hidden = {"sum": CLASSES, "concat": 1, "film": 2 * WIDTH, "gated": WIDTH}[kind]
        self.fc_x = nn.Linear(WIDTH, hidden)
        self.fc_out = nn.Linear(2 * WIDTH if kind == "concat" else WIDTH, CLASSES)

    def forward(self, x, y):
        if self.kind == "concat":
            return self.fc_out(torch.cat([x, y], 1))
        if self.kind == "sum":
            return self.fc_x(x) + self.fc_out(y)
        if self.kind == "gated":
            return self.fc_out(self.fc_x(x).sigmoid() * y)
        gamma, beta = self.fc_x(x).chunk(2, 1)
        return self.fc_out(gamma * y + beta)


class AVClassifier(nn.Module):
    """The audio encoder sees spectrograms, the visual one every frame by itself."""

    def __init__(self, fusion):
        super().__init__()
        self.fusion_module = Fusion(fusion)
        self.audio_net = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.visual_net = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, audio, visual):
        a, v = self.audio_net(audio), self.visual_net(visual.transpose(1, 2).flatten(0, 1))
        v = v.unflatten(0, (len(audio), -1)).transpose(1, 2)  # [B, D, T, H, W]
        return self.fusion_module(
            F.adaptive_avg_pool2d(a, 1).flatten(1), F.adaptive_avg_pool3d(v, 1).flatten(1)
        )


def main(fusion="concat", steps=40):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model = AVClassifier(fusion)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    encoders = {"audio": "audio_net", "visual": Encoder("visual_net", layout="(B T) D H W")}
    optimizer = CGGMOptimizerWrapper(
        sgd, model, encoders=encoders, head="fusion_module.fc_out", policy=OGMGE()
    )
    sounds, pictures = torch.randn(CLASSES, 1, 12, 12), torch.randn(CLASSES, 3, 1, 8, 8)
    losses = []
    for _ in range(steps):
        target = torch.randint(CLASSES, (32,))
        audio = sounds[target] + torch.randn(32, 1, 12, 12)
        loss = F.cross_entropy(model(audio, pictures[target] + torch.randn(32, 3, FRAMES, 8, 8)), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    for fusion in ("sum", "concat", "film", "gated"):
        losses, optimizer = main(fusion)
        print(f"{fusion:8} loss {losses[0]:.2f} -> {losses[-1]:.2f}", optimizer.statistics["scores"].tolist())
