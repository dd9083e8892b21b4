"""Scales the parameter updates of any optimizer by the coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ops import scale_

from ..distributed.collectives import local
from ..torch_private import foreach_add_, foreach_copy_, foreach_sub_
from .scaling import Parameters, by_place


class UpdateScaling:
    """Scales an optimizer's updates of the encoders: `θ ← θ_before + c_i (θ_after − θ_before)`.

    The update includes everything the optimizer does, decoupled weight decay too. The object allocates two copies of
    the encoders' trainable parameters before the step, so nothing large is allocated after it.

    Args:
        parameters: the encoders' parameters before the step.
    """

    def __init__(self, parameters: Parameters) -> None:
        trainable = [(local(p.detach()), owner) for p, owner in parameters if p.requires_grad]
        self._parameters = [p for p, _ in trainable]
        self._owners = [owner for _, owner in trainable]
        self._before = [torch.empty_like(p) for p in self._parameters]
        self._updates = [torch.empty_like(p) for p in self._parameters]
        if trainable:  # `clone` would need one kernel launch per parameter
            foreach_copy_(self._before, self._parameters)
        self._left = [(self._parameters, self._updates)] if trainable else []

    def apply(self, coefficients: Tensor) -> None:
        """Scale every parameter change since construction by the coefficients `[M]`; call it again if it fails."""
        if not self._left:
            return
        foreach_copy_(self._updates, self._parameters)
        foreach_sub_(self._updates, self._before)
        each = zip(self._updates, self._owners, strict=True)
        for (device, _), (part, owners) in by_place((update, owner, ()) for update, owner in each).items():
            scale_(part, owners, coefficients.to(device))
        foreach_add_(self._updates, self._before)
        foreach_copy_(*self._left.pop())
