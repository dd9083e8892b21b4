"""What a task is, and what every task requires of a target."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

#: What class indices can be; `cross_entropy` takes no other dtype.
INDICES = (torch.int64, torch.uint8)


class Task(Protocol):
    """The loss that trains a unimodal classifier, and the score that compares the modalities.

    Write `loss` and `score` for a task of your own. Both return a 0-dimensional tensor on the output's device, the
    mean over the batch, without a host synchronization. The score is "higher is better" and carries no gradient.
    `confidence` is what OGM-GE and AGM compare; inherit its default from this class or leave it out.

    Output and target may be any structure that the task understands: `balance()` passes the target on as it is, and the
    output is what the unimodal classifier returned. Each function may also have these keyword arguments, and gets them
    if its signature names them:

    - `modality`: the modality's name.
    - `present`: bool `[B]`, the samples that have this modality, or None for all. `balance(present=...)` requires it.
      The mean is over these samples only.

    A loss or score that is not finite (the mean over no samples, for example) counts for nothing in that step.
    """

    def loss(self, output: Any, target: Any) -> Tensor:
        """Loss that trains the unimodal classifier."""
        ...

    def score(self, output: Any, target: Any) -> Tensor:
        """Score of the unimodal classifier on this batch."""
        ...

    def confidence(self, output: Any, target: Any) -> Tensor:
        """Probability `[B]` that the output gives to the truth, sample by sample.

        By default `exp(−loss)`, one number for the batch, which for a single sample of a classification is the same.
        """
        return (-self.loss(output, target).float()).exp()


def confidence_of(task: Any, output: Any, target: Any) -> Tensor:
    """The task's `confidence`, or the default of `Task` where the task has none."""
    own = getattr(task, "confidence", None)
    return Task.confidence(task, output, target) if own is None else own(output, target)


def check_batch(output: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless the target is a dense tensor of as many samples as the output."""
    if not isinstance(target, Tensor):
        raise ValueError(
            f"target must be a tensor for this task, got {type(target).__name__}; for targets of another structure "
            "write a task of your own, two functions loss(output, target) and score(output, target)"
        )
    if target.layout is not torch.strided or target.is_complex() or target.is_meta != output.is_meta:
        raise ValueError(
            f"target must be a dense tensor of real numbers with data, got one of {target.dtype} and layout "
            f"{target.layout} on {target.device}"
        )
    if target.ndim == 0 or target.shape[0] != output.shape[0]:
        raise ValueError(
            f"target must have one row per sample: the classifier's output is {list(output.shape)}, "
            f"the target {list(target.shape)}; pass balance() the target of the batch that was forwarded"
        )


def fill_absent(values: Tensor, present: Tensor, value: float) -> Tensor:
    """Values `[B, ...]` with `value` in the samples that are not present (bool `[B]`).

    >>> import torch
    >>> fill_absent(torch.ones(2, 2), torch.tensor([True, False]), 0)
    tensor([[1., 1.],
            [0., 0.]])
    """
    return values.masked_fill(~present.view(-1, *[1] * (values.ndim - 1)), value)


def mean_of_present(values: Tensor, present: Tensor | None) -> Tensor:
    """Mean of values `[B, ...]` over the samples that are present (bool `[B]`; None: all); NaN if there are none."""
    if present is None:
        return values.mean()
    values = values if values.ndim == 1 else values.flatten(1).mean(1)
    return values.masked_fill(~present, 0).sum() / present.sum()


def mean_of_counted(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of values `[B, ...]` over the elements that count (bool, the same shape); NaN if there are none.

    >>> import torch
    >>> mean_of_counted(torch.tensor([1.0, 2.0, torch.inf]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    kind = torch.promote_types(values.dtype, torch.float32)
    return values.masked_fill(~counted, 0).sum(dtype=kind) / counted.sum()
