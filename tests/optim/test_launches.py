"""What balancing adds to a step is a fixed number of operations, however many parameters the model has."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import cggm_ops
from cggm.policies import CGGM, DGL, MIMO, MLB, OGMGE, OPM, SMP, NormEqualization, TCMax, UnimodalLosses
from cggm.policies.plan import scale_targets
from helpers import batches, small_model, wrap

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),  # takes its own step
}
POLICIES = [
    CGGM(),
    CGGM(lam=0.1),
    CGGM.released(),
    UnimodalLosses(),
    NormEqualization(),
    OGMGE(noise=False),
    DGL(),
    MLB(),
    OPM(),
    TCMax(),
    UnimodalLosses() + MIMO(),
    SMP(stage_steps=5, epoch_steps=2),
]
CASES = [(p, apply) for p in POLICIES for apply in scale_targets(p, adaptive=False)]


class Counter(TorchDispatchMode):
    """Counts operations; over a list of tensors one takes as few launches as their addresses fit into."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        launches_nothing = function.is_view or function.name().startswith("aten::empty")
        self.count += not launches_nothing
        return function(*args, **(kwargs or {}))


def operations(layers, policy, apply, optimizer, fused="auto"):
    """Of `balance()`, and of `step()`, with so many layers more in every encoder."""
    model = small_model()
    for encoder in model.encoders.values():
        encoder.extend(nn.Linear(4, 4) for _ in range(layers))
    wrapper = wrap(model, OPTIMIZERS[optimizer](model.parameters()), policy, apply=apply, fused=fused)
    counts = []
    for inputs, target in batches(3):
        wrapper.zero_grad()
        loss = F.cross_entropy(model(*inputs), target)
        with Counter() as balancing:
            loss = wrapper.balance(loss, target)
        loss.backward()
        with Counter() as stepping:
            wrapper.step()
        counts.append((balancing.count, stepping.count))
    return counts[-1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("policy", "apply"), CASES, ids=str)
def test_operations_do_not_grow_with_the_model(policy, apply, optimizer):
    balancing, stepping = operations(1, policy, apply, optimizer)
    assert operations(40, policy, apply, optimizer) == (balancing, stepping)
    assert balancing < 60
    assert stepping < 60


@pytest.mark.skipif(
    cggm_ops.backend("cpu") != "compiled", reason="without kernels there are other operations"
)
@pytest.mark.parametrize(("policy", "balancing"), [(CGGM(), 39), (UnimodalLosses(), 19)], ids=str)
def test_operations_are_as_many_as_the_readme_says(policy, balancing):
    applications, optimizers = scale_targets(policy, adaptive=False), ("sgd", "adamw")
    counts = [operations(1, policy, apply, name) for apply in applications for name in optimizers]
    assert max(found for found, _ in counts) == balancing
    steppings = {
        stepping
        for apply in applications
        for name in optimizers
        for _, stepping in [operations(1, policy, apply, name, fused=True)]
    }
    assert steppings <= {2, 3, 4, 5}
