"""What the combiner did to each encoder's gradient in a step, measured at the junctions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.collectives import sum_over_ranks
from ..junctions.features import Junction
from ..junctions.hook import EncoderHook


class GradientRecord:
    """Has the junctions add up dot products of the multimodal, the unimodal and the combined gradient.

    Args:
        hooks: the encoders' hooks; junctions at the parameters are left out.
    """

    def __init__(self, hooks: Sequence[EncoderHook]) -> None:
        self.on = False
        self._hooks = hooks
        self._table: Tensor | None = None  # [M, 3, 3], of g_m, g_u and g

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # the junctions' views would become copies

    def start(self, device: torch.device) -> None:
        """Record from now on, starting at zero."""
        self.on = True
        if self._table is None or self._table.device != device:
            self._share(torch.zeros(len(self._hooks), 3, 3, dtype=torch.float32, device=device))
        self._table.zero_()

    def stop(self) -> None:
        """Record nothing."""
        self.on = False
        self._share(None)

    def _share(self, table: Tensor | None) -> None:
        for number, hook in enumerate(self._hooks):
            if isinstance(hook.junction, Junction):
                hook.junction.record_into(None if table is None else table[number])
        self._table = table

    def statistics(self) -> dict[str, Tensor]:
        """`unimodal_shares`, `angles` and `step_changes` of this step, `[M]` each, over all ranks; empty while off.

        With the combined gradient written as `g = a g_m + b g_u`, the share is `b ‖g_u‖ / (a ‖g_m‖ + b ‖g_u‖)`. The
        angle is that between `g_m` and `g_u` in degrees, the change `‖g‖ / ‖g_m‖`. NaN where a gradient is zero; the
        share also where `g_m` and `g_u` are parallel.
        """
        if self._table is None:
            return {}
        gram = sum_over_ranks(self._table).double()
        (mm, mu, mg), (_, uu, ug), (_, _, gg) = (row.unbind(-1) for row in gram.unbind(-2))  # [M] each
        multimodal, unimodal = mm.sqrt(), uu.sqrt()
        part_m = (mg * uu - ug * mu) * multimodal  # a ‖g_m‖ times a determinant, which part_u has too
        part_u = (ug * mm - mg * mu) * unimodal
        found = {
            "unimodal_shares": part_u / (part_m + part_u),
            "angles": (mu / (multimodal * unimodal)).clamp(-1, 1).acos().rad2deg(),
            "step_changes": gg.sqrt() / multimodal,
        }
        return {name: values.float() for name, values in found.items()}


class JointShares:
    """Has the junctions add up what joint training's gradient is of the gradient that enters each encoder.

    Args:
        hooks: the encoders' hooks; junctions that do not measure are left out.
    """

    def __init__(self, hooks: Sequence[EncoderHook]) -> None:
        self._hooks = hooks
        self._table: Tensor | None = (
            None  # [M, 2], squared norms of g_m and g; one address, as CUDA graphs need
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # the junctions' views would become copies

    def start(self, device: torch.device) -> None:
        """Measure from now on, starting at zero."""
        junctions = [hook.junction for hook in self._hooks if hook.junction.measured]
        if not junctions:
            return
        if self._table is None or self._table.device != device:
            table = torch.zeros(len(junctions), 2, dtype=torch.float32, device=device)
            for junction, row in zip(junctions, table.unbind(), strict=True):
                junction.measure_into(row)
            self._table = table
        self._table.zero_()

    def squared(self) -> Tensor | None:
        """Squared shares `‖g_m‖² / ‖g‖²` `[M + 2]` over all ranks: of the encoders, 1 for the rest, of all encoders.

        1 where nothing has been measured; None where the junctions do not measure.
        """
        if self._table is None:
            return None
        squares = sum_over_ranks(self._table)  # [M, 2]
        squares = torch.cat([squares, torch.ones_like(squares[:1]), squares.sum(0, keepdim=True)])
        return torch.where(squares[:, 1] > 0, squares[:, 0] / squares[:, 1], 1.0)
