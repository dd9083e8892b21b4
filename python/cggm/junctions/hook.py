"""The hook on an encoder: finds the features in its output, splits them at the junction and keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_private import recomputing
from .dropout import DropoutMask
from .features import Junction
from .layouts import Layout
from .other_outputs import OtherOutputs
from .parameters import ParameterJunction
from .selectors import Path, Selector, replace, select

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and by name


class EncoderHook:
    """Forward hook on one encoder: splits its output at the junction and keeps the unimodal branch.

    Args:
        name: the modality.
        selector: where the features are in the encoder's output; None to look.
        junction: splits them.
        mask: drops the modality from some samples, or None.
        layout: tells which axis of the features holds the samples; None for the first.
        model: of runs in a row while it is in evaluation mode, only the latest is kept.
    """

    def __init__(
        self,
        name: str,
        selector: Selector,
        junction: Junction | ParameterJunction,
        mask: DropoutMask | None,
        layout: Layout | None,
        model: nn.Module,
    ) -> None:
        self.name = name
        self.selector = selector
        self.junction = junction
        self.mask = mask
        self.layout = layout
        self._model = model
        self.features: tuple[Tensor, ...] = ()  # of every run that has not been balanced
        self.modes: tuple[bool, ...] = ()  # whether each of these runs was in training mode
        self.inputs: tuple[Inputs, ...] = ()  # what made them, where `keep_inputs` is registered
        self.keeps_output = False
        self.output: tuple[Any, Path] | None = None  # all that the encoder put out, where `keeps_output`
        self.others = OtherOutputs(name, junction, mask is not None, layout)
        self.passing = False  # something stands in for the encoder: its output is left alone
        self.owned = True  # False without a wrapper: its output is left alone

    def __call__(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> Any:
        """The hook: the output with the multimodal branch in the features' place."""
        if self.passing or not self.owned or not torch.is_grad_enabled():
            return output
        features, path = select(output, self.selector, self.name)
        again = recomputing()
        dropped = None if self.mask is None else self.mask.dropped(features, self.name, again, self.layout)
        inputs = (*arguments, *keywords.values())
        multimodal, unimodal = self.junction.split(features, dropped, module, inputs)
        if not again:
            kept = self._kept()
            self.features, self.modes = (
                (*self.features[:kept], unimodal),
                (*self.modes[:kept], self._model.training),
            )
            self.output = (output, path) if self.keeps_output else None
        if path and not self.others.done:
            return self.others.pass_on(
                output,
                path,
                encoder=module,
                features=features,
                multimodal=multimodal,
                dropped=dropped,
                again=again,
            )
        return replace(output, path, multimodal)

    def keep_inputs(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        """A second hook, before the encoder runs, where a mask or a layout is made of its inputs."""
        if self.owned and torch.is_grad_enabled() and not self.passing and not recomputing():
            inputs = arguments, keywords
            self.inputs = (*self.inputs[: self._kept()], inputs)

    @property
    def trained(self) -> int:
        """How many of the runs that have not been balanced were in training mode."""
        return sum(self.modes)

    def _kept(self) -> int:
        """How many runs stay when another one comes: evaluation without `no_grad` must not pile up graphs."""
        replaces = self.modes and not (self._model.training or self.modes[-1])
        return len(self.modes) - 1 if replaces else len(self.modes)

    def keep_runs(self, numbers: Sequence[int]) -> None:
        """Forget all runs but these."""
        if self.inputs:
            self.inputs = tuple(self.inputs[number] for number in numbers)
        self.features = tuple(self.features[number] for number in numbers)
        self.modes = tuple(self.modes[number] for number in numbers)

    def forget(self) -> None:
        """Drop what has been kept, and with it the graph of the forward pass."""
        self.features, self.inputs, self.modes, self.output = (), (), (), None

    def __getstate__(self) -> dict[str, Any]:
        # A graph can be neither copied nor pickled. A copy does nothing until its own wrapper takes it over.
        return {**self.__dict__, "features": (), "modes": (), "output": None, "inputs": (), "owned": False}
