"""The segmentation task: a class for every pixel or voxel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import check_flag, check_range, check_whole
from ..constants import constant
from .base import INDICES, check_batch, fill_absent

_SMOOTHING = 1e-6  # what neither has nor should have anything scores 1


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One class per pixel: `½ · cross entropy + ½ · (1 − Dice)`, and the Dice score of regions as the metric.

    Outputs are logits `[B, C, ...]` on a grid of one to three dimensions, which are resized linearly to the target's
    size where that is another one; targets class indices `[B, ...]`, int64 or uint8. The Dice of the loss is that of
    the softmax probabilities, mean over all classes, pixels of the whole batch together. (The recipe of the CGGM
    paper's BraTS experiment has `class_weights=(0.2, 0.3, 0.25, 0.25)`, `regions=((1, 2, 3), (1, 3), (3,))`.)

    Args:
        class_weights: C weights of the cross entropy, `>= 0`; None for 1.
        regions: groups of classes that are scored together; None for every class but the background, class 0.
        ignore_index: the class index of pixels that do not count, neither in the loss nor in the scores. Where no pixel
            counts, loss and scores are NaN, and the wrapper leaves the modality out of this step.
        released: the formulas of the CGGM paper's script. The loss's Dice is one ratio over all classes but the
            background, `2 Σ p t / (Σ p + Σ t + 0.01)`. The score is the mean over regions of the mean over samples of
            `2 (|A ∩ B| + 0.001) / (|A| + |B| + 0.002)`.

    Raises:
        ValueError: a negative weight, an empty region.

    >>> task = Segmentation()
    >>> logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]])                          # 1 × 2 classes × 1 × 2 pixels
    >>> task.dice(logits, torch.tensor([[[0, 1]]])), task.dice(logits, torch.tensor([[[1, 1]]]))
    (tensor([1.]), tensor([0.6667]))
    """

    class_weights: tuple[float, ...] | None = None
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore_index: int = -100
    released: bool = False

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            if not isinstance(self.class_weights, tuple) or not self.class_weights:
                raise ValueError(
                    f"class_weights must be a tuple of one number >= 0 per class, got {self.class_weights!r}"
                )
            for index, weight in enumerate(self.class_weights):
                check_range(f"class_weights[{index}]", weight, 0.0)
        if self.regions is not None:
            groups = self.regions if isinstance(self.regions, tuple) and self.regions else ((),)
            if not all(isinstance(group, tuple) and group for group in groups):
                raise ValueError(
                    f"regions must be tuples of one class or more, as ((1, 2), (2,)), got {self.regions!r}"
                )
            for number in (number for group in groups for number in group):
                check_whole("each class of regions", number, 0)
        check_whole("ignore_index", self.ignore_index)
        check_flag("released", self.released)

    def _resized(self, output: Tensor, target: Tensor) -> Tensor:
        check_batch(output, target)
        if target.dtype not in INDICES or not output.ndim == target.ndim + 1 in (3, 4, 5):
            raise ValueError(
                "target must hold class indices [B, ...] (int64 or uint8) for logits [B, C, ...] of one to three "
                f"spatial dimensions, got {list(target.shape)} of {target.dtype} for {list(output.shape)}; "
                'task="multi-label" takes 0 and 1 of the output\'s shape'
            )
        if output.shape[1] == 1:
            raise ValueError(
                f"target: the output {list(output.shape)} has one channel, and a class per pixel takes two or more: "
                'give the head a channel for the background, too, or pass task="multi-label" with a target of the '
                "output's shape"
            )
        if output.shape[2:] == target.shape[1:]:
            return output
        mode = ("linear", "bilinear", "trilinear")[target.ndim - 2]
        return F.interpolate(output, size=target.shape[1:], mode=mode, align_corners=False)

    def _among(self, target: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target with absent samples ignored, and which pixels count."""
        if present is not None:
            target = fill_absent(target.long(), present, self.ignore_index)
        return target, target != self.ignore_index

    def loss(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """`½ · cross entropy + ½ · (1 − Dice)`, 0-dimensional.

        Args:
            output: logits `[B, C, ...]`.
            target: class indices `[B, ...]`.
            present: bool `[B]`, the samples that count; None for all.

        Raises:
            ValueError: a target that fits no logits of this shape, or not as many weights as classes.
        """
        output = self._resized(output, target).float()
        target, counted = self._among(target, present)
        classes = output.shape[1]
        weight = None
        if self.class_weights is not None:
            if len(self.class_weights) != classes:
                raise ValueError(
                    f"class_weights has {len(self.class_weights)} weights, but the output {list(output.shape)} has "
                    f"{classes} classes"
                )
            weight = constant(self.class_weights, output.device)
        numbers = torch.arange(classes, device=output.device).view(-1, *[1] * (output.ndim - 2))
        true = (
            target[:, None] == numbers
        ).float()  # [B, C, ...]; one_hot would look at the values on the host
        probabilities = output.softmax(1) * counted[:, None]
        if self.released:
            found, true = probabilities[:, 1:], true[:, 1:]
            dice = 2 * (found * true).sum() / (found.sum() + true.sum() + 0.01)
        else:
            others = [0, *range(2, output.ndim)]
            both = (probabilities * true).sum(others)  # [C]
            dice = (2 * both + _SMOOTHING) / (probabilities.sum(others) + true.sum(others) + _SMOOTHING)
        entropy = F.cross_entropy(output, target, weight=weight, ignore_index=self.ignore_index)
        return 0.5 * entropy + 0.5 * (1 - dice.mean())

    def dice(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Dice score `2 |A ∩ B| / (|A| + |B|)` of each region, over the batch, on the device; 1 where both are empty.

        Arguments as in `loss`.

        Raises:
            ValueError: a target that fits no logits of this shape, a region of a class that there is not.
        """
        output = self._resized(output.detach(), target)
        target, counted = self._among(target, present)
        classes = output.shape[1]
        regions = self.regions or tuple((i,) for i in range(1, classes))
        if any(not 0 <= i < classes for region in regions for i in region):
            raise ValueError(f"regions names classes of {regions}, but the output has {classes} classes")
        rows = tuple(tuple(float(i in region) for i in range(classes)) for region in regions)
        member = constant(rows, output.device)  # [R, C]
        mask = counted.flatten(1)  # [B, pixels]
        found = member[:, output.argmax(1).flatten(1)] * mask  # [R, B, pixels]
        true = member[:, target.masked_fill(~counted, 0).flatten(1)] * mask
        if self.released:
            dice = 2 * ((found * true).sum(2) + 1e-3) / (found.sum(2) + true.sum(2) + 2e-3)  # [R, B]
            samples = mask.any(1)
            dice = dice.masked_fill(~samples, 0).sum(1) / samples.sum()
        else:
            sizes = found.sum((1, 2)) + true.sum((1, 2))
            dice = (2 * (found * true).sum((1, 2)) + _SMOOTHING) / (sizes + _SMOOTHING)
        return dice.masked_fill(~mask.any(), torch.nan)

    def score(self, output: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean Dice score of the regions, in `[0, 1]`; arguments as in `loss`.

        Raises:
            ValueError: as `dice`.
        """
        return self.dice(output, target, present).mean()

    def confidence(self, output: Tensor, target: Tensor) -> Tensor:
        """Probability `[B]` of the true class, mean over the pixels of a sample that count; 0 if there are none.

        Raises:
            ValueError: a target that fits no logits of this shape.
        """
        probabilities = self._resized(output, target).float().softmax(1)
        ignored = target == self.ignore_index
        true = probabilities.gather(1, target.long().masked_fill(ignored, 0)[:, None])[:, 0]
        return true.masked_fill(ignored, 0).flatten(1).sum(1) / self.counted(target).clamp_min(1)

    def counted(self, target: Tensor) -> Tensor:
        """How many pixels of each sample count, `[B]` float32."""
        return (target != self.ignore_index).flatten(1).sum(1, dtype=torch.float32)
