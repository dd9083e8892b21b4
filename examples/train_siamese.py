"""A siamese pair: the model runs on two views of each item, and one loss compares its two outputs.

Every pass is balanced: scores and unimodal losses are means over the two. Run it with
`python examples/train_siamese.py`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper

ITEMS = 8


class Item(nn.Module):
    """An embedding of a picture and a description, and the item that it shows."""

    def __init__(self):
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 8))
        self.description = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))
        self.fusion, self.head = nn.Linear(16, 16), nn.Linear(16, ITEMS)

    def forward(self, picture, description):
        embedding = self.fusion(torch.cat([self.picture(picture), self.description(description)], 1))
        return embedding, self.head(embedding.relu())


def main(steps=60):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model = Item()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.AdamW(model.parameters(), lr=5e-3),
        model,
        encoders={"picture": "picture", "description": "description"},
        head="head",
    )
    pictures, descriptions = torch.randn(ITEMS, 20), torch.randn(ITEMS, 10)
    losses = []
    for _ in range(steps):
        target = torch.randint(ITEMS, (32,))
        views = [
            (pictures[target] + 0.5 * torch.randn(32, 20), descriptions[target] + torch.randn(32, 10))
            for _ in range(2)
        ]
        (one, logits), (other, others) = (model(*view) for view in views)
        apart = 1 - F.cosine_similarity(one, other).mean()
        loss = apart + F.cross_entropy(logits, target) + F.cross_entropy(others, target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    losses, optimizer = main()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}", optimizer.statistics["scores"].tolist())
