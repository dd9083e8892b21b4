"""Which optimizers divide updates by the gradient's own scale, so that scaling a gradient changes nothing."""

from __future__ import annotations

from torch.optim import Optimizer

#: Optimizers whose update is linear in the gradient, by the name of their class or a base class. Every other optimizer
#: counts as adaptive: `apply="auto"` then scales updates, which has the same effect with any optimizer.
LINEAR_OPTIMIZERS = frozenset({"SGD", "ASGD", "SGDScheduleFree", "SGDW", "SGDP"})


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether an optimizer is assumed to divide updates by the gradient's own scale; see `LINEAR_OPTIMIZERS`.

    One that wraps another, as its `optimizer`, `base_optimizer` or `base` (Lookahead, SAM), is what that one is.

    >>> import torch
    >>> parameters = [torch.nn.Parameter(torch.ones(1))]
    >>> is_adaptive(torch.optim.SGD(parameters, lr=0.1)), is_adaptive(torch.optim.AdamW(parameters))
    (False, True)
    """
    inner = (getattr(optimizer, name, None) for name in ("optimizer", "base_optimizer", "base"))
    wrapped = next(
        (found for found in inner if isinstance(found, Optimizer) and found is not optimizer), None
    )
    linear = not LINEAR_OPTIMIZERS.isdisjoint(cls.__name__ for cls in type(optimizer).__mro__)
    return not linear and (wrapped is None or is_adaptive(wrapped))
