"""Scores each modality by the model itself, with the other modalities' features masked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from ..junctions.selectors import floating_tensors, replace
from .coalitions import in_evaluation, standing_in
from .encoders import EncoderSet
from .watcher import Watcher, autocast_state

_FILL = 1e-6


class MaskedForward(Watcher):
    """Runs the whole model again with the features of one modality, and `1e-6` for the others.

    It keeps the model's arguments and all that its encoders put out in the training loop's forward pass. Every floating
    tensor of the other encoders' outputs is filled with `1e-6`: models that divide features by their norm make NaN of
    zeros.

    Args:
        model: the user's model, unwrapped.
        encoders: the model's encoders.
    """

    def __init__(self, model: nn.Module, encoders: EncoderSet) -> None:
        self._model, self._encoders = model, encoders
        self._handles: list[Any] = []
        self.forget()

    def attach(self) -> None:
        """Watch the model's calls and its encoders' outputs."""
        self._handles = [self._model.register_forward_pre_hook(self._keep_call, with_kwargs=True)]
        for name, encoder in zip(self._encoders.names, self._encoders.modules(), strict=True):
            hook = _KeepOutput(self, name)
            self._handles.append(
                encoder.register_forward_hook(hook, prepend=True)
            )  # before anything is dropped

    def detach(self) -> None:
        """Undo `attach`."""
        self.forget()
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self._call: tuple[tuple, dict[str, Any]] | None = None
        self.outputs: dict[str, tuple[Any, ...]] = {}  # of each encoder, in every run of it in the last call

    @torch.no_grad()
    def outputs_alone(self, runs: int) -> list[Any]:
        """The model's M outputs for each modality alone, in evaluation mode, without gradients.

        Args:
            runs: how often each encoder ran for the loss at hand.

        Raises:
            RuntimeError: the model was not called as a whole, or the loss comes from several calls of it.
        """
        if self._call is None or len(self.outputs) < len(self._encoders.names):
            raise RuntimeError(
                "masked scores need a forward pass of the whole model, model(...), in which every encoder runs; call "
                "that before balance()"
            )
        if runs > min(len(each) for each in self.outputs.values()):
            raise RuntimeError(
                "this loss comes from several calls of the model, and masked scores run it once: put the passes into "
                "the forward function of one module and wrap that, or balance() each pass by itself"
            )
        kept = [self.outputs[name] for name in self._encoders.names]
        found = []
        with in_evaluation(self._model), torch.autocast(**self._autocast):
            for alone in range(len(kept)):
                given = [[_filled(o, i == alone) for o in each] for i, each in enumerate(kept)]
                with standing_in(self._encoders, given):
                    arguments, keywords = _copied(*self._call)
                    found.append(self._model.forward(*arguments, **keywords))
        return found

    def _keep_call(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        if self.watching:
            self._call, self.outputs = _copied(arguments, keywords), {}

    def keep_output(self, name: str, output: Any) -> None:
        """Keep what an encoder has put out, and under which autocast it ran."""
        if self.watching:
            self.outputs = {**self.outputs, name: (*self.outputs.get(name, ()), output)}
            kind = next((x.device.type for _, x in floating_tensors(output)), "cpu")
            self._autocast = autocast_state(kind)

    def __getstate__(self) -> dict[str, Any]:
        # a graph can be neither copied nor pickled
        return {**self.__dict__, "_call": None, "outputs": {}, "owned": False}


class _KeepOutput:
    """Forward hook on one encoder; an object, because a model with hooks that are functions cannot be pickled."""

    def __init__(self, owner: MaskedForward, name: str) -> None:
        self._owner, self._name = owner, name

    @property
    def owned(self) -> bool:
        """Whether there is a wrapper; without one the hook can be removed."""
        return self._owner.owned

    def __call__(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        self._owner.keep_output(self._name, output)


def _filled(output: Any, kept: bool) -> Any:
    """A copy of an encoder's output, which the model may change in place; masked unless it is kept."""
    for path, tensor in list(floating_tensors(output)):
        output = replace(output, path, tensor.clone() if kept else torch.full_like(tensor, _FILL))
    return output


def _copied(arguments: tuple, keywords: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call, with copies of the containers among them, which a model may take apart."""

    def each(value: Any) -> Any:
        return copy.copy(value) if isinstance(value, (list, MutableMapping)) else value

    return tuple(map(each, arguments)), {name: each(value) for name, value in keywords.items()}
