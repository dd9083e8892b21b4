"""Classification: one class per sample, or any number of labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import check_batch


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One class per sample: cross entropy, and accuracy as the metric.

    Outputs are logits `[B, C]`; targets class indices `[B]` (integer) or class probabilities `[B, C]` (floating).

    Args:
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in `[0, 1]`.

    >>> task = Classification()
    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> task.score(logits, target)
    tensor(0.5000, dtype=torch.float64)
    """

    label_smoothing: float = 0.0

    def _check(self, output: Tensor, target: Tensor) -> None:
        check_batch(output, target)
        indices = target.ndim == 1 and not target.is_floating_point()
        probabilities = target.shape == output.shape and target.is_floating_point()
        if not indices and not probabilities:
            raise ValueError(
                f"target must hold class indices [{output.shape[0]}] (integer) or class probabilities "
                f"{list(output.shape)} (floating), got {list(target.shape)} of {target.dtype}"
            )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over the batch.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        target = target.to(output.dtype) if target.is_floating_point() else target
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Accuracy in `[0, 1]`, float64.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        target = target.argmax(-1) if target.is_floating_point() else target
        return (output.argmax(-1) == target).double().mean()

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` of the true class; with class probabilities, the expected one.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        probabilities = output.float().softmax(-1)
        if target.is_floating_point():
            return (probabilities * target).sum(-1)
        return probabilities.gather(-1, target[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Any number of labels per sample: binary cross entropy, and the F1 score over all labels as the metric.

    Outputs are logits `[B, C]`; targets `[B, C]` hold 0 and 1, or probabilities, in any dtype.

    >>> task = MultiLabel()
    >>> logits, target = torch.tensor([[2.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])
    >>> task.score(logits, target)                              # two labels found, one too many: 4 / (4 + 1)
    tensor(0.8000)
    """

    def _target(self, output: Tensor, target: Tensor) -> Tensor:
        check_batch(output, target)
        if target.shape != output.shape:
            raise ValueError(
                f"target must hold 0 or 1 for each label, {list(output.shape)}, got {list(target.shape)}"
            )
        return target.to(output.dtype)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross entropy, mean over samples and labels.

        Raises:
            ValueError: a target of another shape.
        """
        return F.binary_cross_entropy_with_logits(output, self._target(output, target))

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """`2 TP / (2 TP + FP + FN)` in `[0, 1]`, counted over all samples and labels; 1 where there is none.

        Raises:
            ValueError: a target of another shape.
        """
        found, true = output.detach() > 0, self._target(output, target) > 0.5
        wrong = (found != true).sum()
        twice = 2 * (found & true).sum()
        return torch.where(twice + wrong > 0, twice / (twice + wrong).clamp_min(1), 1.0)

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` of the true answers, mean over the labels.

        Raises:
            ValueError: a target of another shape.
        """
        true = self._target(output, target).float()
        positive = output.float().sigmoid()
        return (true * positive + (1 - true) * (1 - positive)).mean(-1)
