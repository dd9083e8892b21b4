"""A small model in the middle of its training, ready for a call that cannot work and for the right one after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper
from cggm.policies import MLB, UnimodalLosses
from helpers import BASES, batches, flat, small_model, wrap


def ready() -> tuple[nn.Module, CGGMOptimizerWrapper, Tensor, Tensor]:
    """A model after two steps, its optimizer, and the loss of a forward pass with its target."""
    model = small_model()
    optimizer = wrap(model, BASES["adamw"](model.parameters()), UnimodalLosses() + MLB())
    *before, (inputs, target) = batches(3)
    for its, truth in before:
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*its), truth), truth).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, F.cross_entropy(model(*inputs), target), target


def finish(
    model: nn.Module, optimizer: CGGMOptimizerWrapper, loss: Tensor, target: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take the step of this loss; return the model's values and the statistics after it."""
    optimizer.balance(loss, target).backward()
    optimizer.step()
    return flat(model), {name: value.clone() for name, value in optimizer.statistics.items()}
