"""Coefficients on what an optimizer does to the parameters, whichever optimizer it is."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ops import scale_

from ..distributed.collectives import local
from ..torch_private import foreach_add_, foreach_copy_, foreach_sub_
from .scaling import Parameters, by_place


class UpdateScaling:
    """Scales what an optimizer step does to the encoders: `θ ← θ_before + c_i (θ_after − θ_before)`.

    Everything that the optimizer does counts as its update, decoupled weight decay included. Holds two copies of
    the encoders' trainable parameters, made before the step so that nothing large is allocated after it.

    Args:
        parameters: the encoders' parameters as they are before the step.
    """

    def __init__(self, parameters: Parameters) -> None:
        trainable = [(local(p.detach()), owner) for p, owner in parameters if p.requires_grad]
        self._parameters = [p for p, _ in trainable]
        self._owners = [owner for _, owner in trainable]
        self._before = [torch.empty_like(p) for p in self._parameters]
        self._updates = [torch.empty_like(p) for p in self._parameters]
        if trainable:  # `clone` would be a launch for each
            foreach_copy_(self._before, self._parameters)

    def apply(self, coefficients: Tensor) -> None:
        """Rescale by the coefficients `[M]` whatever has happened to the parameters since construction."""
        if not self._parameters:
            return
        foreach_copy_(self._updates, self._parameters)
        foreach_sub_(self._updates, self._before)
        each = zip(self._updates, self._owners, strict=True)
        for (device, _), (part, owners) in by_place((update, owner, ()) for update, owner in each).items():
            scale_(part, owners, coefficients.to(device))
        foreach_add_(self._before, self._updates)
        foreach_copy_(self._parameters, self._before)
