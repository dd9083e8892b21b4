"""Classification: one class per sample or position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import check_range, check_whole
from .base import check_batch, fill_absent, mean_of_present
from .hints import check_form, check_probabilities


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One class per sample, or per position: cross entropy, and accuracy as the metric.

    Outputs are logits `[B, C]`, or `[B, T, C]` for tokens, as a language model puts them out. The classes are the last
    axis. The target's shape and dtype say what it holds: the output's shape without the last axis (`[B]` or
    `[B, T]`), int64 or uint8, for class indices; the output's own shape, floating, for class probabilities, two classes
    or more, `>= 0` and of sum 1; the wrapper checks these values in its first `balance()`. Targets of a language model
    must already be shifted, so that position t holds the token that output t predicts.

    Targets equal to `ignore_index` count for nothing: loss, score and confidence are means over the others, and NaN if
    there are none; the wrapper then leaves the modality out of this step.

    Args:
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in `[0, 1]`.
        ignore_index: the class index of targets that do not count.

    Raises:
        ValueError: an argument outside its range.

    >>> task = Classification()
    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> task.score(logits, target), task.score(logits, torch.tensor([0, -100]))
    (tensor(0.5000, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0.0, 1.0)
        check_whole("ignore_index", self.ignore_index)

    def _check(self, output: Tensor, target: Tensor) -> None:
        check_batch(output, target)
        check_form(output, target)

    def check_values(self, target: Tensor) -> None:
        """Check that a floating target holds class probabilities; waits for the device, so that it runs once.

        Raises:
            ValueError: a negative number, or a row whose sum is not 1 within `1e-3`.
        """
        if (
            isinstance(target, Tensor)
            and target.is_floating_point()
            and 1 < target.ndim < 4
            and target.shape[-1] > 1
        ):
            check_probabilities(target)

    def _among(self, target: Tensor, present: Tensor | None) -> Tensor:
        """Class indices with absent samples ignored."""
        return target if present is None else fill_absent(target.long(), present, self.ignore_index)

    def loss(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Cross entropy, mean over the positions that count.

        Args:
            output: logits `[B, C]` or `[B, T, C]`.
            target: class indices or probabilities.
            present: bool `[B]`, the samples that count; None for all.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        options = {"label_smoothing": self.label_smoothing}
        logits = output if output.ndim == 2 else output.flatten(0, -2)
        if not target.is_floating_point():
            target = self._among(target, present).flatten()
            return F.cross_entropy(logits, target, ignore_index=self.ignore_index, **options)
        target = target.to(output.dtype).reshape(logits.shape)
        if present is None:
            return F.cross_entropy(logits, target, **options)
        each = F.cross_entropy(logits, target, reduction="none", **options)
        return mean_of_present(each.view(output.shape[:-1]), present)

    def score(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Accuracy in `[0, 1]` over the positions that count, float64; arguments as in `loss`.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        if target.is_floating_point():
            return mean_of_present((output.argmax(-1) == target.argmax(-1)).double(), present)
        target = self._among(target, present)
        counted = target != self.ignore_index
        right = output.argmax(-1) == target
        if self.ignore_index >= 0:  # it may be an output of the classifier, too
            right = right & counted
        return right.sum(dtype=torch.float64) / counted.sum()

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` of the true class, or with class probabilities the expected one.

        With several positions it is the mean over those that count. For a sample of which nothing counts the number
        means nothing; see `counted`.

        Raises:
            ValueError: a target that fits neither form.
        """
        self._check(output, target)
        probabilities = output.float().softmax(-1)
        if target.is_floating_point():
            true = (probabilities * target).sum(-1)
            return true if true.ndim == 1 else true.flatten(1).mean(1)
        true = probabilities.gather(-1, target.long().clamp_min(0)[..., None])[..., 0]
        if true.ndim == 1:
            return true
        true = true.masked_fill(target == self.ignore_index, 0)
        return true.flatten(1).sum(1) / self.counted(target).clamp_min(1)

    def counted(self, target: Tensor) -> Tensor | None:
        """How many positions of each sample count, `[B]` float32; None if all do."""
        if target.is_floating_point():
            return None
        counted = target != self.ignore_index
        return counted.float() if target.ndim == 1 else counted.flatten(1).sum(1, dtype=torch.float32)
