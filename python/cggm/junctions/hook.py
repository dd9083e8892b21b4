"""The hook on an encoder: finds the features in its output, splits them at the junction and keeps them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_private import recomputing
from .dropout import DropoutMask
from .features import Junction
from .parameters import ParameterJunction

Selector = int | str | None


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


class EncoderHook:
    """Forward hook on one encoder: splits its output at the junction and keeps the unimodal branch.

    Args:
        name: the modality.
        selector: where the features are in the encoder's output; None to look.
        junction: splits them.
        mask: drops the modality from some samples, or None.
    """

    def __init__(
        self, name: str, selector: Selector, junction: Junction | ParameterJunction, mask: DropoutMask | None
    ) -> None:
        self.name = name
        self.selector = selector
        self.junction = junction
        self.mask = mask
        self.features: Tensor | None = None  # of the latest forward pass that has not been balanced
        self.keeps_output = False
        self.output: tuple[Any, Selector] | None = None  # all that the encoder put out, where `keeps_output`
        self.passing = False  # something stands in for the encoder: its output is left alone

    def __call__(self, module: nn.Module, arguments: tuple, output: Any) -> Any:
        """The hook: the output with the multimodal branch in the features' place."""
        if self.passing or not torch.is_grad_enabled():
            return output
        features, selector = select(output, self.selector, self.name)
        again = recomputing()
        dropped = None if self.mask is None else self.mask.dropped(features, self.name, again)
        multimodal, unimodal = self.junction.split(features, dropped, module, arguments)
        if not again:
            self.features = unimodal
            self.output = (output, selector) if self.keeps_output else None
        return replace(output, selector, multimodal)

    def forget(self) -> None:
        """Drop what has been kept, and with it the graph of the forward pass."""
        self.features = self.output = None

    def __getstate__(self) -> dict[str, Any]:
        # a graph can be neither copied nor pickled
        return {**self.__dict__, "features": None, "output": None}
