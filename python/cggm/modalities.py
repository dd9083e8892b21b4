"""Modalities: names -> encoders, their parameters, and the features captured at their outputs."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .junction import Junction, Meet

Selector = int | str | None
EncoderSpec = "str | nn.Module | tuple[str | nn.Module, int | str]"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module behind DistributedDataParallel, DataParallel and `torch.compile`.

    >>> unwrap(nn.DataParallel(nn.Linear(2, 2)))
    Linear(in_features=2, out_features=2, bias=True)
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        else:
            return model


def find_module(model: nn.Module, module: str | nn.Module, argument: str) -> tuple[str, nn.Module]:
    """The dotted name and the module, given either.

    Raises:
        ValueError: no such submodule; close matches are suggested.
        TypeError: neither a name nor a module.
    """
    names = {name: found for name, found in model.named_modules() if name}
    if isinstance(module, str):
        if module not in names:
            close = difflib.get_close_matches(module, names, n=3) or list(names)[:8]
            raise ValueError(
                f"{argument}: the model has no submodule {module!r}; did you mean one of {close}?"
            )
        return module, names[module]
    if isinstance(module, nn.Module):
        module = unwrap(module)
        for name, found in names.items():
            if found is module:
                return name, found
        raise ValueError(f"{argument}: this {type(module).__name__} is not a submodule of the model")
    raise TypeError(f"{argument} must be a dotted submodule name or a module, got {type(module).__name__}")


def select(output: Any, selector: Selector, name: str) -> tuple[Tensor, Selector]:
    """The features inside an encoder's output, and the selector that found them.

    Without a selector: a tensor itself, the first floating tensor of a tuple or list, or the `pooler_output`,
    `last_hidden_state`, ... (the first floating tensor) of a mapping or dataclass output.

    Raises:
        TypeError: nothing of that kind there.

    >>> select((torch.ones(2, 3), None), None, "audio")[1]
    0
    """
    if selector is not None:
        found = (
            output[selector] if isinstance(output, (tuple, list, Mapping)) else getattr(output, str(selector))
        )
        if isinstance(found, Tensor):
            return found, selector
        raise TypeError(f"encoder {name!r}: output[{selector!r}] is a {type(found).__name__}, not a tensor")
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Mapping):
        candidates = [(k, output[k]) for k in ("pooler_output", "last_hidden_state", *output) if k in output]
    elif isinstance(output, (tuple, list)):
        candidates = list(enumerate(output))
    else:
        candidates = list(vars(output).items()) if hasattr(output, "__dict__") else []
    for key, value in candidates:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value, key
    raise TypeError(
        f"encoder {name!r}: no features found in its output of type {type(output).__name__}; "
        f"name them, as in encoders={{{name!r}: (module, 'field')}}"
    )


def replace(output: Any, selector: Selector, features: Tensor) -> Any:
    """The encoder's output with other features in the selected place; the original is left alone."""
    if selector is None:
        return features
    if isinstance(output, tuple):
        items = [features if i == selector else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    output = copy.copy(output)
    if isinstance(output, (list, Mapping)):
        output[selector] = features  # type: ignore[index]
    else:
        setattr(output, str(selector), features)
    return output


class Capture:
    """Forward hook on one encoder: splits its output at the junction and keeps the unimodal branch.

    Args:
        name: the modality.
        selector: where the features are in the encoder's output; None to look.
        junction: splits them.
    """

    def __init__(self, name: str, selector: Selector, junction: Junction) -> None:
        self.name = name
        self.selector = selector
        self.junction = junction
        self.features: Tensor | None = None  # of the latest forward pass that has not been balanced

    def __call__(self, module: nn.Module, arguments: tuple, output: Any) -> Any:
        """The hook: the output with the multimodal branch in the features' place."""
        if not torch.is_grad_enabled():
            return output
        features, selector = select(output, self.selector, self.name)
        multimodal, unimodal = self.junction.split(features)
        if not _recomputing():
            self.features = unimodal
        return replace(output, selector, multimodal)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "features": None}  # a graph can be neither copied nor pickled


def _recomputing() -> bool:
    """Inside a backward pass, as activation checkpointing is when it repeats a forward."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Modalities:
    """The model's encoders in order, and which parameter belongs to which.

    Args:
        model: the user's model, wrapped or not.
        encoders: modality name -> encoder, or (encoder, selector of the features in its output).
        meet: the policy's rule at the junction, or None where gradients pass unchanged.

    Raises:
        ValueError: fewer than two modalities, a name that does not exist, nested encoders, a shared parameter.
    """

    def __init__(self, model: nn.Module, encoders: Mapping[str, Any], meet: Meet | None) -> None:
        if not isinstance(encoders, Mapping) or len(encoders) < 2:
            raise ValueError(
                "encoders must map at least two modality names to encoders, as in "
                f"{{'audio': 'audio_encoder', 'image': 'image_encoder'}}, got {encoders!r}"
            )
        model = unwrap(model)
        self.names = tuple(encoders)
        self.paths: dict[str, str] = {}
        self.captures: list[Capture] = []
        self._model = model
        self._handles: list[Any] = []
        self._owned: list[tuple[Tensor, int]] | None = None
        for name, spec in encoders.items():
            module, selector = spec if isinstance(spec, tuple) else (spec, None)
            self.paths[name], _ = find_module(model, module, f"encoders[{name!r}]")
            self.captures.append(Capture(name, selector, Junction(meet)))
        self._check_disjoint()

    def attach(self) -> None:
        """Put the forward hooks on the encoders."""
        for encoder, capture in zip(self.encoders(), self.captures, strict=True):
            self._handles.append(encoder.register_forward_hook(capture))

    def encoders(self) -> list[nn.Module]:
        """The encoders as they are now, found by name: sharding and compilation replace objects, not names."""
        return [self._model.get_submodule(self.paths[name]) for name in self.names]

    def owned(self) -> list[tuple[Tensor, int]]:
        """Every parameter of the encoders with the index of its modality, remembered until `refresh`."""
        if self._owned is None:
            self._owned = [(p, i) for i, encoder in enumerate(self.encoders()) for p in encoder.parameters()]
        return self._owned

    def have_gradients(self) -> bool:
        """Whether any encoder's parameter has a gradient now."""
        return any(p.grad is not None for p, _ in self.owned())

    def refresh(self) -> None:
        """Look the parameters up again at the next use."""
        self._owned = None

    def features(self) -> list[Tensor]:
        """Features of the forward pass just made; `forget` them afterwards, so that none serves twice.

        Raises:
            RuntimeError: an encoder has not run since, or not with gradients enabled.
        """
        missing = [c.name for c in self.captures if c.features is None]
        if missing:
            raise RuntimeError(
                f"balance() found no features of {missing}: call it once after each forward pass of the model in "
                "which every encoder runs, with gradients enabled"
            )
        return [c.features for c in self.captures if c.features is not None]

    def forget(self) -> None:
        """Drop captured features, and with them the graph of the last forward pass."""
        for capture in self.captures:
            capture.features = None

    def set_coefficients(self, coefficients: Tensor | None) -> None:
        """What the junctions apply in the backward passes to come: `[M]`, or None for 1."""
        for index, capture in enumerate(self.captures):
            if coefficients is None:
                capture.junction.reset()
            else:
                capture.junction.set_coefficient(coefficients[index])

    def detach(self) -> None:
        """Take the hooks off again."""
        self.forget()
        for handle in self._handles:
            handle.remove()

    def _check_disjoint(self) -> None:
        seen: dict[Tensor, tuple[str, str]] = {}
        for name, encoder in zip(self.names, self.encoders(), strict=True):
            for key, parameter in encoder.named_parameters():
                if parameter in seen:
                    other, other_key = seen[parameter]
                    raise ValueError(
                        f"a parameter is shared: {self.paths[name]}.{key} of {name!r} is {self.paths[other]}."
                        f"{other_key} of {other!r}, and one gradient cannot have two coefficients; "
                        "name as encoders only the parts that belong to one modality"
                    )
                seen[parameter] = (name, key)
