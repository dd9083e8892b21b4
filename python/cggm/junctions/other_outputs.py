"""Encoder outputs other than the features: finds which ones the model uses, and passes them through the junction."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..user_warning import warn_user
from .features import Junction
from .parameters import ParameterJunction
from .selectors import Path, as_selector, floating_tensors, replace


class OtherOutputs:
    """The other tensors of one encoder's output.

    In the first step, all of them pass through the junction, and hooks record which ones get a gradient of the
    multimodal loss. From then on, only those pass through it.

    Args:
        name: the modality.
        junction: the encoder's junction.
        drops: whether modality dropout may remove the modality from some samples.
    """

    def __init__(self, name: str, junction: Junction | ParameterJunction, drops: bool) -> None:
        self._name = name
        self._junction = junction
        self._matter = drops or junction.acts
        self._used: set[Path] = set()
        self._same: set[Path] = set()  # the features themselves, again
        self._not_dropped: set[Path] = set()
        self._selected: Path = ()
        self._unseen = False  # whether a compiled pass put out other tensors, which cannot be watched there
        self._warned = False  # of that
        self._paths: frozenset[Path] | None = (
            None  # to be passed through the junction; None before that is known
        )

    @property
    def done(self) -> bool:
        """Whether nothing is left to pass on or to watch."""
        return self._paths is not None and not self._paths

    def pass_on(
        self, output: Any, path: Path, multimodal: Tensor, dropped: Tensor | None, again: bool
    ) -> Any:
        """Replace the features with their multimodal branch, and pass the other tensors through the junction.

        Args:
            output: the whole output of the encoder.
            path: path to the features.
            multimodal: the multimodal branch of the features.
            dropped: bool, broadcasts with the features; True for samples that lose this modality.
            again: True if activation checkpointing repeats the run, which is not watched again.

        Raises:
            ValueError: modality dropout cannot find the sample axis.
        """
        result = replace(output, path, multimodal)
        watching = self._paths is None and not again and not torch.compiler.is_compiling()
        if watching:
            self._selected = path
            self._watch(multimodal, path)
        tensors = dict(floating_tensors(output))
        features = tensors.pop(path)
        if tensors and self._paths is None and torch.compiler.is_compiling():
            self._selected, self._unseen = path, True
        for other, tensor in tensors.items():
            if self._paths is not None and other not in self._paths:
                continue
            if tensor is features:
                self._same.add(other)
                result = replace(result, other, multimodal)
            elif tensor.requires_grad:
                passed = self._junction.pass_on(tensor, self._flags(other, tensor, features, dropped))
                if watching:
                    self._watch(passed, other)
                result = replace(result, other, passed)
        return result

    def _watch(self, tensor: Tensor, path: Path) -> None:
        if tensor.requires_grad:
            tensor.register_hook(partial(self._mark, path))

    def _mark(self, path: Path, gradient: Tensor | None) -> None:
        if gradient is None:  # only the unimodal branch got a gradient
            return
        self._used.add(path)
        if path != self._selected and not self._junction.takes_others:
            raise RuntimeError(
                f"encoder {self._name!r}: MMPareto() needs the whole multimodal gradient to come through one "
                f"output, but the model uses {as_selector(path)!r} beside or instead of "
                f"{as_selector(self._selected)!r}: pass "
                f"Encoder(..., output={as_selector(path)!r}) if it uses no other, or take FeaturePareto()"
            )

    def _flags(self, path: Path, tensor: Tensor, features: Tensor, dropped: Tensor | None) -> Tensor | None:
        """`dropped`, reshaped to broadcast with another output."""
        if dropped is None or tensor.shape == features.shape:
            return dropped
        axes = [axis for axis, size in enumerate(tensor.shape) if size == dropped.numel()]
        if len(axes) == 1:
            return dropped.reshape([-1 if axis == axes[0] else 1 for axis in range(tensor.ndim)])
        if self._paths is not None:
            raise ValueError(self._no_samples(path, list(tensor.shape)))
        self._not_dropped.add(path)
        return None

    def _no_samples(self, path: Path, shape: object) -> str:
        return (
            f"encoder {self._name!r}: the model uses its output {as_selector(path)!r}, too, and modality dropout "
            f"cannot tell which axis of it holds the samples ({shape}); have the encoder put it out with one axis "
            "as long as there are samples, or leave modality dropout out"
        )

    def decide(self, alone: bool) -> None:
        """After the first backward pass, keep only the outputs that the model uses.

        Args:
            alone: whether the policy supports the features as the only used output.

        Raises:
            RuntimeError: the model uses another output instead of the selected one, or more than the policy supports.
        """
        if self._paths is None and not self._used and self._unseen and not self._warned:
            self._warned = True
            warn_user(
                f"encoder {self._name!r}: its features are output {as_selector(self._selected)!r} of several, and in a "
                "compiled model the wrapper cannot see which ones the model uses: run optimizer.explain() or one step "
                "before torch.compile, or have the encoder put out one tensor"
            )
        if self._paths is not None or not self._used:
            return
        used = ", ".join(repr(as_selector(path)) for path in sorted(self._used, key=str))
        if self._selected not in self._used:
            raise RuntimeError(
                f"encoder {self._name!r}: its features were read from output {as_selector(self._selected)!r}, but "
                f"the multimodal loss came back through {used} alone: pass Encoder(..., output=...) with what it uses"
            )
        others = self._used - {self._selected}
        if others and alone:
            raise RuntimeError(
                f"encoder {self._name!r}: the model uses its outputs {used}, and this policy runs the fusion again "
                "with one of them replaced; wrap the encoder in a module of one output, or take another policy"
            )
        for path in sorted(others & self._not_dropped, key=str):
            raise RuntimeError(self._no_samples(path, "none, or several, have their number"))
        self._paths = frozenset(others | self._same if self._matter else ())
