"""Modalities: names -> encoders, their parameters, and the features captured at their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.collectives import check_parameters
from ..junctions.dropout import ModalityMask
from ..junctions.features import make_junctions
from ..junctions.hook import Capture
from ..policies.base import Application, Policy
from .lookup import find_module, submodule, unwrap

EncoderSpec = "str | nn.Module | tuple[str | nn.Module, int | str]"


class Modalities:
    """The model's encoders in order, and which parameter belongs to which.

    Args:
        model: the user's model, wrapped or not.
        encoders: modality name -> encoder, or (encoder, selector of the features in its output).
        policy: its rule at the junctions, and its modality dropout.
        application: where its coefficients act.

    Raises:
        ValueError: fewer than two modalities, a name that does not exist, nested encoders, a shared parameter.
    """

    def __init__(
        self, model: nn.Module, encoders: Mapping[str, Any], policy: Policy, application: Application
    ) -> None:
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
        self._coefficients: Tensor | None = None  # [M]; one address for good, as CUDA graphs need
        self._owned: list[tuple[Tensor, int]] | None = None
        self._checked: list[tuple[Tensor, int]] | None = (
            None  # the list of which the optimizer has been asked
        )
        self.mask = ModalityMask(policy.dropout, self.names, model) if policy.dropout > 0 else None
        junctions = make_junctions(policy, application, self.names)
        for (name, spec), junction in zip(encoders.items(), junctions, strict=True):
            module, selector = spec if isinstance(spec, tuple) else (spec, None)
            self.paths[name], _ = find_module(model, module, f"encoders[{name!r}]")
            self.captures.append(Capture(name, selector, junction, self.mask))
        self._check_disjoint()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coefficients": None}  # the junctions' views would become copies

    def attach(self) -> None:
        """Put the forward hooks on the encoders."""
        for encoder, capture in zip(self.encoders(), self.captures, strict=True):
            self._handles.append(encoder.register_forward_hook(capture))

    def encoders(self) -> list[nn.Module]:
        """The encoders as they are now, found by name: sharding and compilation replace objects, not names."""
        return [submodule(self._model, self.paths[name]) for name in self.names]

    def owned(self) -> list[tuple[Tensor, int]]:
        """Every parameter of the encoders with the index of its modality, remembered until `refresh`."""
        if self._owned is None:
            self._owned = [(p, i) for i, encoder in enumerate(self.encoders()) for p in encoder.parameters()]
        return self._owned

    def have_gradients(self) -> bool:
        """Whether any encoder's parameter has a gradient now."""
        return any(p.grad is not None for p, _ in self.owned())

    def with_gradients(self, backward_ran: bool, optimizer: Optimizer) -> list[tuple[Tensor, int]]:
        """`owned`, where a balanced loss has gone backward and its gradients are still there.

        Raises:
            RuntimeError: it has not, or they are not, or the optimizer has none of the model's parameters.
        """
        found = backward_ran and self.have_gradients()
        if backward_ran and not found:
            self.refresh()
            found = self.have_gradients()
        owned = self.owned()
        if owned is not self._checked:
            check_parameters(list(self._model.parameters()), optimizer)
            self._checked = owned
        if not found:
            raise RuntimeError(
                "a balanced loss is pending, but the encoders have no gradients: call backward() on what "
                "balance() returned before step(), and zero_grad() not between the two"
            )
        return owned

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
            capture.forget()
        if self.mask is not None:
            self.mask.forget()

    def set_coefficients(self, coefficients: Tensor | None) -> None:
        """What the junctions apply in the backward passes to come: `[M]`, or None for 1."""
        junctions = [capture.junction for capture in self.captures if capture.junction.scaled]
        if not junctions:
            return
        if coefficients is None:
            if self._coefficients is not None:
                self._coefficients.fill_(1.0)
        elif self._coefficients is None or self._coefficients.device != coefficients.device:
            self._coefficients = coefficients.clone()
            for junction, coefficient in zip(junctions, self._coefficients.unbind(), strict=True):
                junction.read(coefficient)
        else:
            self._coefficients.copy_(coefficients)

    def set_dropout(self, active: bool) -> None:
        """Let modality dropout act, or not, from the next forward pass on."""
        if self.mask is not None:
            self.mask.active = active

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
