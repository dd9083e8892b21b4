"""Total correlation maximization (ICLR 2026, arXiv 2602.13015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cggm.arguments import check_flag, check_range, check_whole

from .roles import Fusion, Objective


@dataclass(frozen=True)
class TCMax(Objective):
    """Replaces the multimodal loss with a bound on the total correlation of all modalities and the label.

    `L_TC = −mean_b f(x_b)[y_b] + log mean_{j, k, y} exp f(a_j, v_k)[y]`, the second mean over all pairs of features in
    the batch and all classes; with M modalities, over all `B^M` tuples. The policy adds `weight · (L_TC − L)` to the
    multimodal loss L. It supports classification only: the head outputs `[B, C]`, targets are class indices `[B]`, and
    −100 is ignored.

    The fusion runs once more, on a batch of `B^M` rows, and stores that many rows of every activation. Its forward
    function must read the number of samples from the features. It runs in the model's mode, as the authors' code does:
    dropout draws for every pair, and BatchNorm treats the pairs as a batch of their own. Pairs use the full features,
    even with `ModalityDropout`, and only samples of the same process.

    Args:
        weight: share of the multimodal loss to replace, in `[0, 1]`.
        max_rows: the largest allowed `B^M`, `>= 1`.
        sampled: if there are more rows, draw `max_rows` tuples with torch's random number generator, an option of the
            authors' script too, instead of raising.

    Raises:
        ValueError: an argument is outside its range; in `balance()`, there are more rows than `max_rows`, or outputs or
            targets have another shape.

    >>> TCMax(weight=0.5).max_rows
    65536
    """

    weight: float = 1.0
    _: KW_ONLY
    max_rows: int = 65_536  # type: ignore[misc]
    sampled: bool = False

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0, 1.0)
        check_whole("max_rows", self.max_rows, 1)
        check_flag("sampled", self.sampled)

    def term(self, fusion: Fusion, loss: Tensor, target: Tensor) -> Tensor:
        """`weight · (L_TC − loss)`."""
        features, output = fusion.features, fusion.output
        samples, modalities = output.shape[0], len(features)
        if output.ndim != 2 or target.ndim != 1 or target.is_floating_point():
            raise ValueError(
                "TCMax() needs a head that puts out [B, C] and class indices [B] as the target, got "
                f"{list(output.shape)} and {list(target.shape)} of {target.dtype}"
            )
        if any(x.shape[0] != samples for x in features):
            raise ValueError(
                f"TCMax() needs the {samples} samples in the first axis of all features, got "
                f"{[list(x.shape) for x in features]}"
            )
        if samples**modalities <= self.max_rows:
            outputs = fusion(_tuples(features)).float()  # [B^M, C]
            true = outputs[:: sum(samples**k for k in range(modalities))]  # [B, C], of the real samples
        elif self.sampled:
            drawn = torch.randint(samples, (modalities, self.max_rows), device=output.device)
            rows = [torch.cat([x, x[which.to(x.device)]]) for x, which in zip(features, drawn, strict=True)]
            true, outputs = fusion(rows).float().tensor_split([samples])  # [B, C] and [max_rows, C]
        else:
            raise ValueError(
                f"TCMax() runs the fusion on {samples}^{modalities} = {samples**modalities} rows of this batch, more "
                f"than max_rows={self.max_rows}: take smaller batches, a larger max_rows if they fit into memory, or "
                "sampled=True"
            )
        bound = F.nll_loss(true, target) + outputs.flatten().logsumexp(0) - math.log(outputs.numel())
        return self.weight * (bound - loss)


def _tuples(features: Sequence[Tensor]) -> list[Tensor]:
    """All combinations of the M modalities' samples, `[B^M, ...]` each; the last modality's samples change fastest.

    >>> [x.tolist() for x in _tuples([torch.tensor([1, 2]), torch.tensor([3, 4])])]
    [[1, 1, 2, 2], [3, 4, 3, 4]]
    """
    samples, modalities = features[0].shape[0], len(features)
    rows = []
    for i, x in enumerate(features):
        alone = x[(None,) * i + (slice(None),) + (None,) * (modalities - 1 - i)]  # [1, .., B, .., 1, ...]
        rows.append(alone.expand(*[samples] * modalities, *x.shape[1:]).flatten(0, modalities - 1))
    return rows
