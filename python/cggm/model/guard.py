"""Leaves unimodal losses that are not finite out of a step, on the device, without waiting for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_private import backward_id


class LossGuard:
    """Keeps a bad unimodal classifier from spoiling the encoders and the other classifiers.

    `0 · inf` is NaN, so a zero factor on the loss is not enough: a gradient that a bad loss made is replaced with zeros
    where it enters the features and the classifier's own parameters. The decision reads the losses before any loss
    scaling. So infinities that a loss scale makes pass, and a `GradScaler` finds them.

    Args:
        classifiers: M modules.
        model: parameters that it shares with a classifier are not guarded, because the multimodal loss trains them too.
    """

    def __init__(self, classifiers: nn.Module, model: nn.Module) -> None:
        self._classifiers = classifiers
        self._shared = set(model.parameters())
        self._handles: dict[Tensor, Any] = {}
        self._watching = False
        self._bad: Tensor | None = None  # bool [M], for the backward pass that runs or comes next
        self._flags: tuple[Tensor, ...] = ()  # its M entries
        self._pass = -1  # the backward pass that it is for
        self.skipped: Tensor | None = None  # [M] float32, how many losses were left out so far

    def total(self, losses: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of the finite ones of M unimodal losses, with its graph, and which are not finite, bool `[M]`.

        Args:
            losses: `[M]`, with their graphs.
            counts: `[M]`, samples that each modality has; None if all do. Nothing is skipped where there are none.
        """
        self._watch()
        with torch.no_grad():
            bad = (losses - losses) != 0  # NaN for NaN and both infinities
            left_out = bad if counts is None else bad & (counts > 0)
            if self.skipped is None or self.skipped.device != bad.device:
                self.skipped = (
                    torch.zeros_like(losses) if self.skipped is None else self.skipped.to(bad.device)
                )
            self.skipped.add_(left_out)
        self._bad, self._flags = bad, bad.unbind()
        return losses.masked_fill(bad, 0).sum(), bad

    def start(self, bad: Tensor) -> None:
        """Use these flags for the backward pass that calls this; several losses may start in one pass."""
        again = self._pass == backward_id()
        self._bad, self._pass = (self._bad | bad if again else bad), backward_id()
        self._flags = self._bad.unbind()

    def gate(self, index: int, features: Tensor) -> Tensor:
        """A view of the features that lets no gradient of a bad loss of modality `index` through."""
        if not features.requires_grad:
            return features
        features = features.view_as(features)
        features.register_hook(partial(self._clean, index))
        return features

    def _watch(self) -> None:
        """Once: put a hook on each classifier's own parameters."""
        if self._watching:
            return
        for index, classifier in enumerate(self._classifiers.children()):
            for parameter in classifier.parameters():
                known = parameter in self._shared or parameter in self._handles
                if parameter.requires_grad and not known:
                    self._handles[parameter] = parameter.register_hook(partial(self._clean, index))
        self._watching = True

    def _clean(self, index: int, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self._flags[index].to(gradient.device), 0)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._watching = {}, False

    def __getstate__(self) -> dict[str, Any]:
        # hooks do not move to a copy
        return {**self.__dict__, "_handles": {}, "_watching": False, "_bad": None, "_flags": (), "_pass": -1}
