"""Trains with an installed cggm: `python installed.py BACKEND` fails unless BACKEND serves the CPU's operators."""

import sys

import torch

import cggm
import cggm_ops
from cggm import CGGM, CGGMOptimizerWrapper

assert cggm.__file__.startswith(sys.prefix), cggm.__file__
assert cggm_ops.__file__.startswith(sys.prefix), cggm_ops.__file__
assert cggm_ops.backend("cpu") == sys.argv[1], (cggm_ops.backend("cpu"), cggm_ops.missing_reason())


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (torch.nn.Linear(i, o) for i, o in ((5, 4), (6, 4), (8, 3)))

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1).relu())


torch.manual_seed(0)
model = Model()
optimizer = CGGMOptimizerWrapper(
    torch.optim.SGD(model.parameters(), lr=0.2),
    model,
    encoders={"a": "a", "b": "b"},
    head="head",
    policy=CGGM(),
    apply="gradient",
    fused=sys.argv[1] == "compiled",
)
a, b = torch.randn(64, 5), torch.randn(64, 6)
target = (a[:, 0] > 0).long() + (b[:, 0] > 0).long()
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(a, b), target)
    optimizer.balance(loss, target).backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.7 * losses[0], losses
