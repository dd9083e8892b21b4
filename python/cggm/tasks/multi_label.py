"""Multi-label classification: any number of labels per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import check_batch, fill_absent, mean_of_counted


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Any number of labels per sample: binary cross entropy, and the F1 score over all labels as the metric.

    Outputs are logits `[B, C]` or `[B, ...]`; targets of the same shape hold 0 and 1, or probabilities, in any dtype.

    Entries outside `[0, 1]`, as -1 for a label that is not known, and NaN count for nothing: loss, score and confidence
    are means over the others, and NaN if there are none; the wrapper then leaves the modality out of this step.

    >>> task = MultiLabel()
    >>> logits, target = torch.tensor([[2.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])
    >>> task.score(logits, target)                              # two labels found, one too many: 4 / (4 + 1)
    tensor(0.8000)
    >>> task.score(logits, torch.tensor([[1, 0], [-1, 1]]))                      # that one is not known
    tensor(1.)
    """

    def _read(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The target in the output's dtype, 0 where it does not count, and where it does."""
        check_batch(output, target)
        if target.shape != output.shape:
            column = target.shape == output.shape[:1] and output.shape[1:] == (1,)
            raise ValueError(
                f"target must hold 0 or 1 for each label, {list(output.shape)}, got {list(target.shape)}"
                + ("; pass target[:, None]" if column else "")
            )
        counted = _counted(target)
        if present is not None:
            counted = fill_absent(counted, present, False)
        return target.to(output.dtype).masked_fill(~counted, 0), counted

    def loss(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Binary cross entropy, mean over the labels that count.

        Args:
            output: logits `[B, C]` or `[B, ...]`.
            target: of the output's shape.
            present: bool `[B]`, the samples that count; None for all.

        Raises:
            ValueError: a target of another shape.
        """
        target, counted = self._read(output, target, present)
        return mean_of_counted(F.binary_cross_entropy_with_logits(output, target, reduction="none"), counted)

    def score(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """`2 TP / (2 TP + FP + FN)` in `[0, 1]`, over all labels that count; 1 where none is there or found.

        Arguments as in `loss`.

        Raises:
            ValueError: a target of another shape.
        """
        target, counted = self._read(output, target, present)
        found, true = (output.detach() > 0) & counted, target > 0.5
        wrong = (found != true).sum()
        twice = 2 * (found & true).sum()
        score = torch.where(twice + wrong > 0, twice / (twice + wrong).clamp_min(1), 1.0)
        return score.masked_fill(~counted.any(), torch.nan)

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` of the true answers, mean over the labels that count; 0 if there are none.

        Raises:
            ValueError: a target of another shape.
        """
        target, counted = self._read(output, target)
        true, positive = target.float(), output.float().sigmoid()
        right = true * positive + (1 - true) * (1 - positive)
        return right.masked_fill(~counted, 0).flatten(1).sum(1) / _numbers(counted).clamp_min(1)

    def counted(self, target: Tensor) -> Tensor:
        """How many labels of each sample count, `[B]` float32."""
        return _numbers(_counted(target))


def _counted(target: Tensor) -> Tensor:
    return (target >= 0) & (target <= 1)


def _numbers(counted: Tensor) -> Tensor:
    return counted.flatten(1).sum(1, dtype=torch.float32)
