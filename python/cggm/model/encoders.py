"""The model's encoders: how the user names them, and which parameter belongs to which modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.collectives import check_parameters, sum_over_ranks
from ..junctions.dropout import DropoutMask
from ..junctions.features import make_junctions
from ..junctions.hook import EncoderHook, Selector
from ..policies.plan import Plan
from .lookup import find_module, submodule, unwrap

Parameters = list[tuple[Tensor, int]]  # with the indices of their modalities


@dataclass(frozen=True)
class Encoder:
    """An encoder and all that is said about it. Its name alone, or the module, is the short form.

    Args:
        module: dotted name of the submodule, or the module.
        output: where the features are in what the module puts out: an index, a key or an attribute. None to look: a
            tensor itself, else the first floating tensor.
        classifier: its unimodal classifier: a module, a pair of a module and the name of its output layer, the width
            of the features, `"attention"` for a default classifier with self-attention; None for the default one.

    >>> Encoder("bert", output="last_hidden_state")
    Encoder(module='bert', output='last_hidden_state', classifier=None)
    """

    module: str | nn.Module
    output: Selector = None
    classifier: Any = None

    @classmethod
    def of(cls, given: Any) -> Encoder:
        """An encoder as the user passed it: a value of this class, a name, a module, or a pair (module, output)."""
        if isinstance(given, Encoder):
            return given
        return cls(*given) if isinstance(given, tuple) and len(given) == 2 else cls(given)


class EncoderSet:
    """The model's encoders in order, their hooks, and which parameter belongs to which modality.

    Args:
        model: the user's model, wrapped or not.
        encoders: modality -> encoder.
        plan: its combiner, its dropout, and what its coefficients scale.

    Raises:
        ValueError: fewer than two modalities, a name that does not exist, nested encoders, a shared parameter.
    """

    def __init__(self, model: nn.Module, encoders: Mapping[str, Encoder], plan: Plan) -> None:
        model = unwrap(model)
        self.names = tuple(encoders)
        self.paths: dict[str, str] = {}
        self.hooks: list[EncoderHook] = []
        self._model = model
        self._handles: list[Any] = []
        self._tables: dict[str, Tensor] = {}  # [M] each; one address for good, as CUDA graphs need
        self._parameters: Parameters | None = None
        self._checked: Parameters | None = None  # the list that the optimizer was compared with
        dropout = plan.dropout
        self.mask = None if dropout is None else DropoutMask(dropout.rates(len(encoders)), self.names, model)
        junctions = make_junctions(plan, self.names)
        for (name, encoder), junction in zip(encoders.items(), junctions, strict=True):
            self.paths[name], _ = find_module(model, encoder.module, f"encoders[{name!r}]")
            self.hooks.append(EncoderHook(name, encoder.output, junction, self.mask))
        self._check_disjoint()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # the junctions' views would become copies

    def attach(self) -> None:
        """Put the hooks on the encoders."""
        for encoder, hook in zip(self.modules(), self.hooks, strict=True):
            self._handles.append(encoder.register_forward_hook(hook))

    def modules(self) -> list[nn.Module]:
        """The encoders in order, looked up by name: sharding and compilation replace objects, not names."""
        return [submodule(self._model, self.paths[name]) for name in self.names]

    def encoder_parameters(self) -> Parameters:
        """Every parameter of the encoders with the index of its modality, remembered until `refresh`."""
        if self._parameters is None:
            self._parameters = [
                (p, i) for i, module in enumerate(self.modules()) for p in module.parameters()
            ]
        return self._parameters

    def have_gradients(self) -> bool:
        """Whether any encoder's parameter has a gradient now."""
        return any(p.grad is not None for p, _ in self.encoder_parameters())

    def with_gradients(self, backward_ran: bool, optimizer: Optimizer) -> Parameters:
        """`encoder_parameters`, once a balanced loss has gone backward and its gradients are there.

        Raises:
            RuntimeError: it has not, or they are not, or the optimizer has none of the model's parameters.
        """
        found = backward_ran and self.have_gradients()
        if backward_ran and not found:
            self.refresh()
            found = self.have_gradients()
        parameters = self.encoder_parameters()
        if parameters is not self._checked:
            check_parameters(list(self._model.parameters()), optimizer)
            self._checked = parameters
        if not found:
            raise RuntimeError(
                "a balanced loss is pending, but the encoders have no gradients: call backward() on what "
                "balance() returned before step(), and zero_grad() not between the two"
            )
        return parameters

    def refresh(self) -> None:
        """Look the parameters up again at the next use."""
        self._parameters = None

    def features(self) -> list[Tensor]:
        """Features of the forward pass just made; `forget` them afterwards, so that none serves twice.

        Raises:
            RuntimeError: an encoder has not run since, or not with gradients enabled.
        """
        missing = [hook.name for hook in self.hooks if hook.features is None]
        if missing:
            raise RuntimeError(
                f"balance() found no features of {missing}: call it once after each forward pass of the model in "
                "which every encoder runs, with gradients enabled"
            )
        return [hook.features for hook in self.hooks if hook.features is not None]

    def forget(self) -> None:
        """Drop captured features, and with them the graph of the last forward pass."""
        for hook in self.hooks:
            hook.forget()
        if self.mask is not None:
            self.mask.forget()

    def set_coefficients(self, coefficients: Tensor | None, unimodal_weights: Tensor | None = None) -> None:
        """What the junctions apply in the backward passes to come: `[M]` each, or None for 1."""
        junctions = [hook.junction for hook in self.hooks]
        self._set("coefficients", coefficients, [j.read for j in junctions if j.scaled])
        readers = [j.read_unimodal_weight for j in junctions if j.weighs_unimodal]
        self._set("unimodal_weights", unimodal_weights, readers)

    def _set(self, name: str, values: Tensor | None, readers: Sequence[Any]) -> None:
        table = self._tables.get(name)
        if not readers:
            return
        if values is None:
            if table is not None:
                table.fill_(1.0)
        elif table is None or table.device != values.device:
            self._tables[name] = values.clone()
            for read, value in zip(readers, self._tables[name].unbind(), strict=True):
                read(value)
        else:
            table.copy_(values)

    def measure_gradients(self, device: torch.device) -> None:
        """Have the junctions measure their gradients from now on, where they are asked to; start anew."""
        junctions = [hook.junction for hook in self.hooks if hook.junction.measured]
        table = self._tables.get("squares")
        if not junctions:
            return
        if table is None or table.device != device:
            table = self._tables["squares"] = torch.zeros(
                len(junctions), 2, dtype=torch.float32, device=device
            )
            for junction, row in zip(junctions, table.unbind(), strict=True):
                junction.measure_into(row)
        table.zero_()

    def joint_shares(self) -> Tensor | None:
        """Squared share `‖g_m‖² / ‖g‖²` `[M]` of the multimodal gradient in what entered the encoders, over all ranks.

        1 where nothing has been measured; None where the junctions do not measure.
        """
        table = self._tables.get("squares")
        if table is None:
            return None
        squares = sum_over_ranks(table)
        return torch.where(squares[:, 1] > 0, squares[:, 0] / squares[:, 1], 1.0)

    def set_rates(self, rates: Tensor | None) -> None:
        """Drop modalities at these rates `[M]` from the next forward pass on; None leaves them."""
        if rates is not None and self.mask is not None:
            self.mask.set_rates(rates)

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
        for name, module in zip(self.names, self.modules(), strict=True):
            for key, parameter in module.named_parameters():
                if parameter in seen:
                    other, other_key = seen[parameter]
                    raise ValueError(
                        f"a parameter is shared: {self.paths[name]}.{key} of {name!r} is {self.paths[other]}."
                        f"{other_key} of {other!r}, and one gradient cannot have two coefficients; "
                        "name as encoders only the parts that belong to one modality"
                    )
                seen[parameter] = (name, key)


def read_encoders(encoders: Any) -> dict[str, Encoder]:
    """The user's mapping of encoders, every one a value of `Encoder`.

    Raises:
        ValueError: not a mapping of at least two modalities.
    """
    if not isinstance(encoders, Mapping) or len(encoders) < 2:
        raise ValueError(
            "encoders must map at least two modality names to encoders, as in "
            f"{{'audio': 'audio_encoder', 'image': 'image_encoder'}}, got {encoders!r}"
        )
    return {name: Encoder.of(given) for name, given in encoders.items()}
