"""Encoder outputs other than the features: finds which ones the model uses, and passes them through the junction."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..user_warning import warn_user
from .dropout import zero_dropped
from .features import Junction
from .layouts import Layout
from .parameters import ParameterJunction
from .selectors import Path, as_selector, floating_tensors, replace


class OtherOutputs:
    """The other tensors of one encoder's output.

    In the first step, all of them pass through the junction, and hooks record which ones get a gradient of the
    multimodal loss. From then on, those pass through it, and a view of each other one waits for a gradient: it is
    treated as the junction would do it, and passes through the junction from the next step on. An output that needs no
    gradient may be in use or not, so that modality dropout always acts on it.

    Args:
        name: the modality.
        junction: the encoder's junction.
        drops: whether modality dropout may remove the modality from some samples.
        layout: of the features; None where the first axis holds the samples.
    """

    def __init__(
        self, name: str, junction: Junction | ParameterJunction, drops: bool, layout: Layout | None
    ) -> None:
        self._name, self._junction, self._drops = name, junction, drops
        self._samples_first = layout is None or layout.samples_axis == 0
        self._matter = drops or junction.acts
        self._used: set[Path] = set()
        self._known: frozenset[Path] = frozenset()  # what `_used` was when it was last decided
        self._late: set[Path] = set()  # used in a step in which dropout had not acted on them
        self._not_dropped: set[Path] = set()
        self._axes: dict[Path, int] = {}  # that hold the samples, where only one axis could
        self._selected: Path = ()
        self._blind = False  # whether the features need no gradient, so that their use cannot be seen
        self._unseen = False  # whether a compiled pass put out other tensors, which cannot be watched there
        self._warned: set[str] = set()
        self._paths: frozenset[Path] | None = (
            None  # to be passed through the junction; None before that is known
        )

    @property
    def done(self) -> bool:
        """Whether nothing is left to pass on or to watch."""
        return self._paths is not None and not self._matter

    def pass_on(
        self,
        output: Any,
        path: Path,
        *,
        encoder: nn.Module,
        features: Tensor,
        multimodal: Tensor,
        dropped: Tensor | None,
        again: bool,
    ) -> Any:
        """Replace the features with their multimodal branch, and pass the other tensors through the junction.

        Args:
            output: the whole output of the encoder.
            path: path to the features.
            encoder: the module that put it out.
            features: what is at the path.
            multimodal: the multimodal branch of the features.
            dropped: bool, broadcasts with the features; True for samples that lose this modality.
            again: True if activation checkpointing repeats the run, which is not watched again.

        Raises:
            ValueError: modality dropout cannot find the sample axis.
        """
        result = replace(output, path, multimodal)
        tensors = dict(floating_tensors(output, max(3, len(path))))
        tensors.pop(path, None)
        compiling = torch.compiler.is_compiling()
        watching = self._paths is None and not again and not compiling
        if watching:
            self._selected, self._blind = path, not features.requires_grad
            self._watch(multimodal, path)
        elif tensors and self._paths is None and compiling:
            self._selected, self._unseen = path, True
        for other, tensor in tensors.items():
            if tensor is features:
                result = replace(result, other, multimodal)
                continue
            flags = None
            if dropped is not None and tensor.ndim:  # a scalar is of no sample
                same = tensor.shape == features.shape
                flags = dropped if same else self._flags(other, tensor, dropped, encoder)
            passed = self._pass(other, tensor, flags, compiling)
            if watching and passed is not tensor:
                self._watch(passed, other)
            result = result if passed is tensor else replace(result, other, passed)
        return result

    def _pass(self, path: Path, tensor: Tensor, flags: Tensor | None, compiling: bool) -> Tensor:
        if not tensor.requires_grad:
            return tensor if flags is None else zero_dropped(tensor, flags, self._junction.fill)
        if self._paths is None or path in self._paths or compiling:
            return self._junction.pass_on(tensor, flags)
        waiting = tensor.view_as(tensor)
        waiting.register_hook(partial(self._use_late, path, flags is not None))
        return waiting

    def _use_late(self, path: Path, drops: bool, gradient: Tensor) -> Tensor:
        self._mark(path, gradient)
        if drops:
            self._late.add(path)
        return self._junction.backward_other(gradient)  # type: ignore[union-attr]

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

    def _flags(self, path: Path, tensor: Tensor, dropped: Tensor, encoder: nn.Module) -> Tensor | None:
        """`dropped`, reshaped to broadcast with another output; None where its samples cannot be found."""
        axis = self._samples_axis(path, tensor, dropped.numel(), encoder)
        if axis is not None:
            return dropped.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
        if self._paths is not None and path in self._paths:
            raise ValueError(self._no_samples(path, list(tensor.shape)))
        self._not_dropped.add(path)
        if not tensor.requires_grad:
            self._warn_once(
                f"encoder {self._name!r}: modality dropout leaves its output {as_selector(path)!r} "
                f"{list(tensor.shape)} as it is: it needs no gradient, and no axis of it is known to hold the samples"
            )
        return None

    def _samples_axis(self, path: Path, tensor: Tensor, samples: int, encoder: nn.Module) -> int | None:
        fitting = [axis for axis in range(max(1, tensor.ndim - 1)) if tensor.shape[axis] == samples]
        known = self._axes.get(path)
        if isinstance(encoder, nn.RNNBase) and tensor.ndim == 3:  # states are [layers, B, D] in any case
            known = 0 if path == (0,) and encoder.batch_first else 1
        if known is not None:
            return known if known in fitting else None
        if len(fitting) == 1:
            self._axes[path] = fitting[0]
        return fitting[0] if len(fitting) == 1 or (0 in fitting and self._samples_first) else None

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and not torch.compiler.is_compiling():
            self._warned.add(text)
            warn_user(text)

    def _no_samples(self, path: Path, shape: object) -> str:
        return (
            f"encoder {self._name!r}: the model uses its output {as_selector(path)!r}, too, and modality dropout "
            f"cannot tell which axis of it holds the samples ({shape}); have the encoder put it out with one axis "
            "as long as there are samples, or leave modality dropout out"
        )

    def decide(self, alone: bool) -> None:
        """After a backward pass, keep to the outputs that the model uses, as far as that is new.

        Args:
            alone: whether the policy supports the features as the only used output.

        Raises:
            RuntimeError: the model uses another output instead of the selected one, or more than the policy supports.
        """
        selected = as_selector(self._selected)
        if self._paths is None and not self._used and self._unseen:
            self._warn_once(
                f"encoder {self._name!r}: its features are output {selected!r} of several, and in a "
                "compiled model the wrapper cannot see which ones the model uses: run optimizer.explain() or one step "
                "before torch.compile, or have the encoder put out one tensor"
            )
        if self._used == self._known:
            return
        used = ", ".join(repr(as_selector(path)) for path in sorted(self._used, key=str))
        if self._selected not in self._used and not self._blind:
            raise RuntimeError(
                f"encoder {self._name!r}: its features were read from output {selected!r}, but "
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
        if self._late:
            late = ", ".join(repr(as_selector(path)) for path in sorted(self._late, key=str))
            self._late.clear()
            self._warn_once(
                f"encoder {self._name!r}: the model uses its output {late} from this step on: modality dropout did not "
                "act on it in this step, and does in the steps to come"
            )
        if self._blind:  # the features may need a gradient later
            self._warn_once(
                f"encoder {self._name!r}: its features were read from output {selected!r}, which needs no gradient, "
                f"while the model trains {used}: the unimodal loss trains the classifier alone. Pass "
                "Encoder(..., output=...) with what the model trains, unless the layers before it are frozen for now"
            )
            return
        self._known = frozenset(self._used)
        self._paths, self._matter = frozenset(others), self._matter or alone
