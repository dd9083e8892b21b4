"""Small models and training loops shared by several tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import cggm_ops
from cggm import CGGM, CGGMOptimizerWrapper, Encoder, Policy, UnimodalLosses
from cggm.policies import Role
from cggm.policies.plan import Plan, make_plan

needs_kernels = pytest.mark.skipif(cggm_ops.backend("cpu") != "compiled", reason="no compiled kernels")
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
WIDTHS = {"audio": 8, "image": 6, "text": 5}
CLASSES = 3
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


class BoundedSum(UnimodalLosses):
    """The sum of both gradients, with SGD steps bounded by joint training's."""

    bounded = True


class SmallModel(nn.Module):
    """Encoders of two layers, concatenation, a hidden fusion layer with in-place activations, a head."""

    def __init__(self, modalities: tuple[str, ...] = ("audio", "image")) -> None:
        super().__init__()
        self.modalities = modalities
        self.encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(WIDTHS[m], 16), nn.Tanh(), nn.Linear(16, 4)) for m in modalities}
        )
        self.fusion = nn.Linear(4 * len(modalities), 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [self.encoders[m](x).relu_() for m, x in zip(self.modalities, inputs, strict=True)]
        return self.head(self.fusion(torch.cat(features, 1)).relu_())


def small_model(modalities: tuple[str, ...] = ("audio", "image"), seed: int = 0) -> SmallModel:
    torch.manual_seed(seed)
    return SmallModel(modalities)


def batches(
    count: int, modalities: tuple[str, ...] = ("audio", "image"), size: int = 32, seed: int = 1
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Batches of a learnable problem: the class depends linearly on all modalities."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(sum(WIDTHS[m] for m in modalities), CLASSES, generator=generator)
    for _ in range(count):
        inputs = [torch.randn(size, WIDTHS[m], generator=generator) for m in modalities]
        yield inputs, (torch.cat(inputs, 1) @ mixing).argmax(1)


def wrap(
    model: nn.Module, base: torch.optim.Optimizer | None = None, policy: Policy | None = None, **options
) -> CGGMOptimizerWrapper:
    """Wrap the small model; `classifiers` is per modality or for all, `flatten` calls `flatten_gradients()`."""
    base = torch.optim.SGD(model.parameters(), lr=0.1) if base is None else base
    classifiers, flatten = options.pop("classifiers", None) or {}, options.pop("flatten", False)
    if isinstance(classifiers, str):
        classifiers = dict.fromkeys(model.modalities, classifiers)
    if "encoders" not in options:
        options["encoders"] = {
            m: Encoder(f"encoders.{m}", classifier=classifiers.get(m)) for m in model.modalities
        }
    optimizer = CGGMOptimizerWrapper(base, model, **{"head": "head", "policy": policy or CGGM()} | options)
    if flatten:
        optimizer.flatten_gradients()
    return optimizer


def plan_of(policy: Policy | Role) -> Plan:
    """The plan of a policy around plain SGD."""
    return make_plan(policy, "auto", torch.optim.SGD([torch.zeros(1)], lr=0.1))


def backward(
    model: nn.Module, optimizer: CGGMOptimizerWrapper, inputs: list[Tensor], target: Tensor
) -> Tensor:
    """Run forward, balance and backward on one batch; return only the multimodal loss."""
    loss = F.cross_entropy(model(*inputs), target)
    optimizer.balance(loss, target).backward()
    return loss.detach()


def train(model: nn.Module, optimizer: CGGMOptimizerWrapper, steps: int = 8, **options) -> list[Tensor]:
    losses = []
    for inputs, target in batches(steps, model.modalities, **options):
        optimizer.zero_grad()
        losses.append(backward(model, optimizer, inputs, target))
        optimizer.step()
    return losses


def flat(model: nn.Module) -> Tensor:
    """All of the model's own parameters in one vector, without those of attached classifiers."""
    return torch.cat([value.flatten().clone() for value in model.state_dict().values()])


def in_buffers(buffers: Sequence[Tensor], parameters: Iterable[Tensor]) -> bool:
    """Whether every gradient lies in one of the buffers of `flatten=True`, taken before backward: reading gathers."""
    memory = [(b.data_ptr(), b.data_ptr() + b.nbytes) for b in buffers]
    grads = [p.grad for p in parameters if p.grad is not None]
    return bool(grads) and all(
        any(start <= g.data_ptr() and g.data_ptr() + g.nbytes <= end for start, end in memory) for g in grads
    )


class NoHostRead(TorchDispatchMode):
    """Fails if the host reads a tensor's value, which would wait for the GPU."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name() not in self.WAITING, function
        return function(*args, **(kwargs or {}))


class NoHostSync(NoHostRead):
    """Also fails if a new tensor copies its value from the host, which would wait too."""

    WAITING = (*NoHostRead.WAITING, "aten::lift_fresh")
