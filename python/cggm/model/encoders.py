"""The model's encoders: how the user names them, and which parameter belongs to which modality."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.collectives import check_parameters
from ..junctions.dropout import DropoutMask
from ..junctions.features import make_junctions
from ..junctions.hook import EncoderHook
from ..junctions.layouts import Layout, layout_of
from ..policies.plan import Plan
from .encoder import Encoder
from .gradient_record import GradientRecord, JointShares
from .lookup import find_module, reached, submodule, unwrap
from .missing import no_features, no_gradients
from .sharing import check_left_out, shared_parameters

Parameters = list[tuple[Tensor, int]]  # with the indices of their modalities


class EncoderSet:
    """The model's encoders in order, their hooks, and which parameter belongs to which modality.

    Args:
        model: the user's model, wrapped or not.
        encoders: modality -> encoder.
        plan: its combiner, its dropout, and what its coefficients scale.

    Raises:
        ValueError: a name that does not exist, overlapping encoders, a shared parameter.
    """

    def __init__(self, model: nn.Module, encoders: Mapping[str, Encoder], plan: Plan) -> None:
        model = unwrap(model)
        self.names = tuple(encoders)
        self.paths: dict[str, tuple[str, ...]] = {}  # of the modules that each is made of
        self.layouts: dict[str, Layout | Callable[..., Tensor] | None] = {}
        self.hooks: list[EncoderHook] = []
        self._model = model
        self._handles: list[Any] = []
        self._tables: dict[str, Tensor] = {}  # [M] each; one address for good, as CUDA graphs need
        self._parameters: Parameters | None = None
        self._shared: set[Tensor] = set()
        self._checked: Parameters | None = None  # the list that the optimizer was compared with
        dropout = plan.dropout
        self.mask = None if dropout is None else DropoutMask(dropout.rates(len(encoders)), self.names, model)
        junctions = make_junctions(plan, self.names)
        for (name, encoder), junction in zip(encoders.items(), junctions, strict=True):
            several = isinstance(encoder.module, (list, tuple))
            wanted = encoder.module if several else [encoder.module]
            found = [find_module(model, module, f"encoders[{name!r}]") for module in wanted]
            if len(found) > 1 and plan.combines_at_parameters:
                raise ValueError(
                    f"encoders[{name!r}] is made of {len(found)} modules, and MMPareto() needs one: put them into one "
                    "module, or use FeaturePareto()"
                )
            self.paths[name] = tuple(path for path, _ in found)
            layout = encoder.read_layout() or layout_of(found[-1][1], encoder.output not in (None, 0))
            self.layouts[name] = layout
            sized = layout if isinstance(layout, Layout) else None
            self.hooks.append(EncoderHook(name, encoder.output, junction, self.mask, sized, model))
        self.record = GradientRecord(self.hooks)
        self.shares = JointShares(self.hooks)
        self._takes_inputs = [callable(e.layout) or e.mask is not None for e in encoders.values()]
        self.unbalanced = 0  # forward passes that no balanced loss was made of, since `unbalanced_runs`
        self._leave = {name for name, encoder in encoders.items() if encoder.shared == "leave"}
        check_left_out(self.shared_parameters(), self._leave, plan)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # the junctions' views would become copies

    def attach(self) -> None:
        """Put the hooks on the encoders."""
        for modules, hook, takes_inputs in zip(self.parts(), self.hooks, self._takes_inputs, strict=True):
            self._handles.append(modules[-1].register_forward_hook(hook, with_kwargs=True))
            if takes_inputs:
                self._handles.append(modules[0].register_forward_pre_hook(hook.keep_inputs, with_kwargs=True))

    def parts(self) -> list[list[nn.Module]]:
        """The modules that each encoder is made of, by name: sharding and compilation replace objects, not names."""
        return [[submodule(self._model, path) for path in self.paths[name]] for name in self.names]

    def modules(self) -> list[nn.Module]:
        """The modules that put out the features, in order."""
        return [modules[-1] for modules in self.parts()]

    def encoder_parameters(self) -> Parameters:
        """Every parameter that one encoder has for itself, with the index of its modality, until `refresh`."""
        if self._parameters is None:
            parts = self.parts()
            self._shared = shared_parameters(
                self._model, dict(zip(self.names, parts, strict=True)), self._leave
            )
            owned = [dict.fromkeys(p for m in modules for p in m.parameters()) for modules in parts]
            self._parameters = [(p, i) for i, own in enumerate(owned) for p in own if p not in self._shared]
        return self._parameters

    def shared_parameters(self) -> set[Tensor]:
        """Parameters that belong to several encoders, or to one and the rest of the model."""
        self.encoder_parameters()
        return self._shared

    def have_gradients(self) -> bool:
        """Whether any encoder's parameter has a gradient now, or none can get one."""
        parameters = [p for p, _ in self.encoder_parameters()]
        return any(p.grad is not None for p in parameters) or not any(p.requires_grad for p in parameters)

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
            raise no_gradients(backward_ran)
        return parameters

    def refresh(self) -> None:
        """Look the parameters up again at the next use."""
        self._parameters = None

    def features(self, loss: Tensor | None, optional: Container[str] = ()) -> list[list[Tensor | None]]:
        """Features `[runs][M]` of the forward passes that the loss was made of; `forget` them afterwards.

        Where an encoder of a modality in `optional` did not run, its features are None.

        Raises:
            RuntimeError: an encoder has not run since, or not with gradients enabled, or more often than another.
        """
        missing = [hook.name for hook in self.hooks if not hook.features]
        ran = [hook for hook in self.hooks if hook.features]
        if not ran or any(name not in optional for name in missing):
            raise no_features(missing)
        if loss is not None and any(len(hook.features) > 1 for hook in self.hooks):
            self._keep_runs_of(loss)
        counts = {hook.name: len(hook.features) for hook in ran}
        if len(set(counts.values())) > 1:
            raise RuntimeError(
                f"the encoders ran unequally often in the forward passes of this loss, {counts}: scores compare the "
                "modalities pass by pass; run every encoder once for each, on a batch of views, say"
            )
        none = (None,) * len(ran[0].features)
        return [list(run) for run in zip(*(hook.features or none for hook in self.hooks), strict=True)]

    def _keep_runs_of(self, loss: Tensor) -> None:
        hooks = [hook for hook in self.hooks if hook.features]
        found = reached(loss, [x for hook in hooks for x in hook.features])
        kept = [
            [i for i, x in enumerate(hook.features) if x.grad_fn in found] or [len(hook.features) - 1]
            for hook in hooks
        ]
        longest, modes = max(kept, key=len), max((hook.modes for hook in hooks), key=len)
        self.unbalanced += max(0, *(hook.trained - len(longest) for hook in hooks))
        for hook, numbers in zip(hooks, kept, strict=True):
            if all(x.grad_fn is None for x in hook.features):  # frozen: its runs go with the others'
                numbers = range(max(len(hook.features) - len(longest), 0), len(hook.features))
            if hook.keeps_output and numbers[-1] != len(hook.features) - 1:
                raise RuntimeError(
                    "this policy runs the fusion again: balance() a forward pass before the next one"
                )
            hook.keep_runs(numbers)
        if self.mask is not None and all(numbers == longest for numbers in kept):
            self.mask.keep_draws([sum(modes[:n]) for n in longest if modes[n]])  # evaluation draws nothing

    def have_run(self) -> bool:
        """Whether the encoders ran, with gradients, since their features were last forgotten."""
        return any(hook.features for hook in self.hooks)

    def unbalanced_runs(self) -> int:
        """How many forward passes of this step, in training mode, had no part in a balanced loss; counts anew then."""
        found = self.unbalanced + max(hook.trained for hook in self.hooks)
        self.unbalanced = 0
        return found

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
            table = values.clone()
            for read, value in zip(readers, table.unbind(), strict=True):
                read(value)
            self._tables[name] = table
        else:
            table.copy_(values)

    def set_rates(self, rates: Tensor | None) -> None:
        """Drop modalities at these rates `[M]` from the next forward pass on; None leaves them."""
        if rates is not None and self.mask is not None:
            self.mask.set_rates(rates)

    def check_outputs(self) -> None:
        """Once, after the first backward pass: whether the model uses the outputs that were selected, and what else.

        Raises:
            RuntimeError: as `OtherOutputs.decide`.
        """
        for hook in self.hooks:
            hook.others.decide(alone=hook.keeps_output)

    def set_active(self, active: bool) -> None:
        """Let dropout and combiners act, or not, from the next forward pass on."""
        for hook in self.hooks:
            hook.junction.active = active
        if self.mask is not None:
            self.mask.active = active

    def detach(self) -> None:
        """Take the hooks off again."""
        self.forget()
        for handle in self._handles:
            handle.remove()
