"""The user's description of one encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..arguments import check_word
from ..junctions.layouts import Layout
from ..junctions.selectors import Selector


@dataclass(frozen=True)
class Encoder:
    """Describes an encoder. The short form is just its name or the module.

    Args:
        module: dotted name of the submodule, or the module; a list of them where the encoder is made of several, the
            one that puts out the features last.
        output: where the features are in what the module puts out: an index, a key or an attribute, or a tuple of them
            for a nested output, as `(1, 0)` for an LSTM's last hidden state. None to look: a tensor itself, else the
            first floating tensor.
        classifier: its unimodal classifier: a module, a pair of a module and the name of its output layer, the width
            of the features, `"attention"` for a default classifier with self-attention; None for the default one.
            `"fusion"`: the model's own fusion and head with the other modalities' features zeroed, which get no
            gradient from the unimodal loss. A module that belongs to the model learns from both losses.
        layout: how the classifier reads the features. Words for their axes (see `Layout`): `"B T D"`, `"B D T"`,
            `"T B D"`, `"B D H W"`, `"(B T) D H W"`; the default classifier averages over all axes but B and D. Or a
            function that is given the features and what the encoder took, and returns features `[B, D]`. None reads
            it off the encoder, or refuses where that is ambiguous.
        mask: which positions of the features count in the default classifier's mean, `[B, positions]`, True or 1 where
            they do: the name of an input of the encoder, or a function of its inputs.
        shared: what to do about parameters that this encoder shares with another one or with the rest of the model.
            `"refuse"`, or `"leave"`: coefficients then leave them alone, which takes `apply="gradient"` or `"update"`.
            The combiner still acts at both encoders' outputs, and the parameters get the sum of what it lets through.

    Raises:
        TypeError, ValueError: an argument of another form.

    >>> Encoder("bert", output="last_hidden_state", mask="attention_mask").layout is None
    True
    """

    module: str | nn.Module | Sequence[str | nn.Module]
    output: Selector = None
    classifier: Any = None
    layout: str | Callable[..., Tensor] | None = None
    mask: str | Callable[..., Tensor] | None = None
    shared: Literal["refuse", "leave"] = "refuse"

    def __post_init__(self) -> None:
        several = isinstance(self.module, (list, tuple))
        if several and not self.module:
            raise ValueError(
                f"module must be a name, a module, or a list of one or more, got {self.module!r}"
            )
        steps = self.output if isinstance(self.output, tuple) and self.output else (self.output,)
        named = all(isinstance(step, (int, str)) and not isinstance(step, bool) for step in steps)
        if self.output is not None and not named and not callable(self.output):
            raise TypeError(
                f"output must be an index, a key or an attribute, or a tuple of them, got {self.output!r}"
            )
        if not (self.mask is None or callable(self.mask) or (isinstance(self.mask, str) and self.mask)):
            raise TypeError(f"mask must name an input of the encoder, or be a function, got {self.mask!r}")
        if callable(self.output):
            raise TypeError(
                "output must say where the features are; pass a function as Encoder(..., layout=function)"
            )
        check_word("shared", self.shared, ("refuse", "leave"))
        self.read_layout()

    def read_layout(self) -> Layout | Callable[..., Tensor] | None:
        """The layout as an object."""
        return self.layout if self.layout is None or callable(self.layout) else Layout(self.layout)

    @classmethod
    def of(cls, given: Any) -> Encoder:
        """Convert the user's value: an `Encoder`, a name, a module, a list, or a pair (module, output).

        The second part of a pair may also be a function, which is then used as the layout.
        """
        if isinstance(given, Encoder):
            return given
        if isinstance(given, tuple) and len(given) == 2:
            return cls(given[0], layout=given[1]) if callable(given[1]) else cls(*given)
        if isinstance(given, tuple):
            raise TypeError(
                f"a tuple must be a pair (module, output), got {len(given)} elements; pass a list for an encoder of "
                "several modules, Encoder(...) for more arguments"
            )
        return cls(given)


def read_encoders(encoders: Any) -> dict[str, Encoder]:
    """Convert the user's mapping of encoders to `Encoder` values.

    Raises:
        ValueError: `encoders` is not a mapping with at least two modalities.
        TypeError, ValueError: one of them is no encoder.
    """
    if not isinstance(encoders, Mapping) or len(encoders) < 2:
        raise ValueError(
            "encoders must map at least two modality names to encoders, as in "
            f"{{'audio': 'audio_encoder', 'image': 'image_encoder'}}, got {encoders!r}"
        )
    return {name: _read(name, given) for name, given in encoders.items()}


def _read(name: Any, given: Any) -> Encoder:
    try:
        return Encoder.of(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"encoders[{name!r}]: {error}") from None
