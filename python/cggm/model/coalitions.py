"""Runs the fusion again on other features, to measure each modality's contribution to the head's output."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..constants import constant, table
from ..finishing import surely
from ..junctions.selectors import floating_tensors, replace
from .shapley import EXACT, ShapleyAttribution, coalitions
from .watcher import Watcher, autocast_state

if TYPE_CHECKING:
    from .encoders import EncoderSet


class CoalitionForward(Watcher):
    """Runs the fusion again with some modalities' features zeroed; the encoders themselves run once.

    It keeps the encoders' outputs from the training loop's forward pass. The model's forward function then runs again
    under the same autocast, with these outputs in place of the encoders. It works with any fusion whose forward
    function calls each encoder once.

    Args:
        model: the user's model, unwrapped.
        head_path: name of its output layer; the layer's output is the value of a coalition of modalities.
        encoders: the model's encoders.
    """

    def __init__(self, model: nn.Module, head_path: str, encoders: EncoderSet) -> None:
        self._model, self._head_path, self._encoders = model, head_path, encoders
        self._handles: list[Any] = []
        self.forget()

    def attach(self) -> None:
        """Watch the model's calls and its head's outputs."""
        head = self._model.get_submodule(self._head_path)
        self._handles = [
            self._model.register_forward_pre_hook(self._keep_call, with_kwargs=True),
            head.register_forward_hook(self._keep_output),
        ]
        for hook in self._encoders.hooks:
            hook.keeps_output = True

    def detach(self) -> None:
        """Undo `attach`."""
        self.forget()
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self._call: tuple[tuple, dict[str, Any]] | None = None
        self._output: Tensor | None = None

    def attribute(self, permutations: int, zero: Literal["features", "inputs"]) -> ShapleyAttribution:
        """Shapley values of the modalities for the head's output in the latest forward pass.

        Args:
            permutations: as in `coalitions`.
            zero: what of the absent modalities is zero: what their encoders put out, or what they take.

        Raises:
            RuntimeError: the model was not called as a whole, or its forward function does not reach the head.
        """
        everyone, features = self.output, self.features
        modalities = len(features)
        asked, shares = coalitions(modalities, permutations)
        exact = modalities <= EXACT  # the same in every step
        weights = (constant if exact else table)(tuple(map(tuple, shares)), everyone.device)  # [M, S]
        absent = (lambda x: None) if zero == "inputs" else torch.zeros_like
        with in_evaluation(self._model):
            values = [
                self([x.clone() if i in members else absent(x) for i, x in enumerate(features)])
                for members in asked[:-1]
            ]
        return ShapleyAttribution([*values, everyone], weights)

    @property
    def model(self) -> nn.Module:
        """The model whose forward function runs."""
        return self._model

    @property
    def output(self) -> Tensor:
        """The head's output in the latest forward pass, with its graph.

        Raises:
            RuntimeError: the whole model has not run.
        """
        if self._call is None or not isinstance(self._output, Tensor):
            raise RuntimeError(
                "the modalities' responses need a forward pass of the whole model, model(...), whose head puts out a "
                "tensor; call that before balance()"
            )
        return self._output

    @property
    def features(self) -> list[Tensor]:
        """The M encoders' features in the latest forward pass, with their graphs."""
        return [hook.features[-1] for hook in self._encoders.hooks]

    def __call__(self, features: Sequence[Tensor | None]) -> Tensor:
        """The head's output for other features, with its graph; runs the forward function without its encoders.

        Args:
            features: M tensors with the shapes of the encoders' outputs; None where the encoder runs, on zeros.

        Raises:
            RuntimeError: the forward function does not reach the head.
        """
        arguments, keywords = self._call  # type: ignore[misc]
        everyone = self.output

        def restore() -> None:
            self._output = everyone

        with surely(restore):
            self._output = None
            with self._replaced(features), torch.autocast(**self._autocast):
                self._model.forward(*arguments, **keywords)
            if self._output is None:
                raise RuntimeError(
                    "the model's forward function did not reach its head when it was called again"
                )
            return self._output

    def _replaced(self, features: Sequence[Tensor | None]) -> contextlib.AbstractContextManager[None]:
        pairs = zip(self._encoders.hooks, features, strict=True)
        outputs = [None if x is None else [replace(*hook.output, x)] for hook, x in pairs]
        return standing_in(self._encoders, outputs)

    def _keep_call(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        if self.watching:
            self._call = arguments, keywords

    def _keep_output(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        if self.watching:
            self._output = output
            if isinstance(output, Tensor):
                self._autocast = autocast_state(output.device.type)

    def __getstate__(self) -> dict[str, Any]:
        # a graph can be neither copied nor pickled
        return {**self.__dict__, "_call": None, "_output": None, "owned": False}


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode

    with surely(restore):
        model.eval()
        yield


@contextlib.contextmanager
def standing_in(encoders: EncoderSet, outputs: Sequence[Sequence[Any] | None]) -> Iterator[None]:
    """Have the encoders put out other outputs; they are restored even after an error.

    Args:
        encoders: M encoders.
        outputs: for each of them, the outputs of its runs in turn, over again after the last; None for its own
            outputs for inputs of zeros.
    """
    modules, hooks = encoders.modules(), encoders.hooks
    own = [module.__dict__.get("forward") for module in modules]
    handles: list[Any] = []

    def restore() -> None:
        for handle in handles:
            handle.remove()
        for module, hook, forward in zip(modules, hooks, own, strict=True):
            hook.passing = False
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward

    with surely(restore):
        for parts, hook, each in zip(encoders.parts(), hooks, outputs, strict=True):
            if each is None:
                zeros = partial(_zero_inputs, hook.name)
                handles.append(parts[0].register_forward_pre_hook(zeros, with_kwargs=True))
            else:
                parts[-1].forward = _in_turn(each)
            hook.passing = True
        yield


def _zero_inputs(name: str, module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> Any:
    inputs: Any = (arguments, keywords)
    found = list(floating_tensors(inputs))
    if not found:
        raise ValueError(
            f"encoder {name!r}: AGM(zero='inputs') zeroes its floating-point inputs, and it takes none: take "
            "zero='features'"
        )
    for path, tensor in found:
        inputs = replace(inputs, path, torch.zeros_like(tensor))
    return inputs


def _in_turn(outputs: Sequence[Any]) -> Callable[..., Any]:
    following = itertools.cycle(outputs)
    return lambda *_, **__: next(following)
