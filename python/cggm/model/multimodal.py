"""The user's model as balanced training sees it: encoders, head, and the unimodal classifiers attached to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.context import ClassifierReplicas
from ..optim.scaling import Owned
from ..policies.base import Application, Policy
from .classifiers import ATTACHED, UnimodalClassifiers, build_classifiers
from .coalitions import Attribution, Responses
from .encoders import Modalities
from .gradient_buffers import FlatGradients
from .head_split import HeadSplit
from .lookup import find_module, submodule, unwrap


class MultimodalModel:
    """Finds the parts by name, attaches what balancing needs, and takes it off again.

    Modules are looked up by name whenever they are used: sharding and compilation replace objects, not names.

    Args:
        model: the user's model, behind `torch.compile` or `DistributedDataParallel` or not.
        encoders: modality -> encoder, or (encoder, selector).
        head: the fusion's output layer, by name or module.
        classifiers: as in `build_classifiers`.
        policy: what it does at the encoders' outputs, and what it reads.
        application: where its coefficients act.
        flatten: whether gradients are laid out in buffers.

    Raises:
        TypeError, ValueError: an argument that cannot work; nothing has been attached then.
    """

    def __init__(
        self,
        model: nn.Module,
        encoders: Mapping[str, Any],
        head: str | nn.Module,
        *,
        classifiers: Mapping[str, Any] | str | None,
        policy: Policy,
        application: Application,
        flatten: bool,
    ) -> None:
        self._model, given = _check_model(model), model
        self._head_path, found = find_module(self._model, head, "head")
        _check_head(found, self._head_path)
        self.modalities = Modalities(self._model, encoders, policy, application)
        named = dict(zip(self.modalities.names, self.modalities.encoders(), strict=True))
        self.classifiers: UnimodalClassifiers = build_classifiers(classifiers, named, found)
        self.replicas = ClassifierReplicas(given, self.classifiers)
        self.flat = FlatGradients(self._model, self.modalities, self.replicas) if flatten else None
        self.responses: Responses | HeadSplit | None = None
        if policy.reads == "responses" and self.replicas.sharded:
            raise ValueError(
                "policy: AGM() runs the fusion again after the forward pass, when fully_shard() has freed its weights; "
                "use it with DistributedDataParallel, or take another policy"
            )
        if policy.meets_at == "parameters":
            self.replicas.check_gradients_apart()
        if policy.noise and self.replicas.sharded:
            raise ValueError(
                "policy: OGMGE(noise=True) needs the deviation of whole gradients, of which every process has a part "
                "here; use it with DistributedDataParallel, or pass noise=False"
            )
        if policy.reads == "responses":
            self.responses = Responses(self._model, self._head_path, self.modalities, policy.permutations)
        elif policy.reads == "head":
            self.responses = HeadSplit(self._model, self._head_path)

    @property
    def head_weight(self) -> Tensor:
        """The head's weight, `[C, H]`."""
        return submodule(self._model, self._head_path).weight

    def backward_started(self) -> None:
        """Have done what comes at the end of the backward pass that calls this."""
        self.replicas.backward_started()
        if self.flat is not None:
            self.flat.backward_started()

    def gathered(self, owned: Owned, policy: Policy) -> Owned:
        """What the coefficients are to multiply: `owned`, or the buffers' segments, where gradients are laid out."""
        if self.flat is None:
            return owned
        self.flat.gather()
        return owned if policy.noise else self.flat.segments  # each tensor has noise of its own strength

    def head_gradients(self) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the head's weight and of the classifiers' output weights, each of the head's shape.

        The first is None where any of them is missing: there is nothing to compare then.
        """
        unimodal = [w.grad for w in self.classifiers.output_weights() if w.grad is not None]
        complete = len(unimodal) == len(self.modalities.names)
        return (self.head_weight.grad if complete else None), unimodal

    def gradients_were_cleared(self) -> bool:
        """Whether gradients that went backward are gone; sharded ones may only not have been reduced yet."""
        return not self.replicas.sharded and not self.modalities.have_gradients()

    def attribute(self, policy: Policy) -> Attribution | None:
        """Shapley values of the forward pass just made, where the policy reads them."""
        reads = policy.reads == "responses" and isinstance(self.responses, Responses)
        return self.responses.attribute() if reads else None

    def compared(
        self,
        policy: Policy,
        outputs: Sequence[Tensor],
        features: Sequence[Tensor],
        attribution: Attribution | None,
    ) -> list[Tensor]:
        """The M outputs that the policy scores, outside of autograd: the classifiers' or what it reads instead."""
        if attribution is not None:
            return attribution.responses()
        if policy.reads == "head" and isinstance(self.responses, HeadSplit):
            return self.responses.split(features)
        return [output.detach() for output in outputs]

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self.modalities.forget()
        if self.responses is not None:
            self.responses.forget()

    def attach(self, optimizer: Optimizer, lr: float | None) -> None:
        """Hooks onto the encoders, classifiers into the model and into a parameter group of their own.

        Args:
            optimizer: gets a group of those classifier parameters that are neither the model's nor its already.
            lr: the group's learning rate; None for that of the group whose options it takes: the head's, or the
                first where the optimizer does not have the head.
        """
        for name, encoder in zip(self.modalities.names, self.modalities.encoders(), strict=True):
            if not any(p.requires_grad for p in encoder.parameters()):
                warnings.warn(
                    f"encoder {name!r} is frozen: its score counts, but there is nothing to modulate",
                    stacklevel=4,
                )
        new = self._own().difference(*(group["params"] for group in optimizer.param_groups))
        own = [(f"{ATTACHED}.{name}", p) for name, p in self.classifiers.named_parameters() if p in new]
        groups, weight = optimizer.param_groups, self.head_weight
        like = next((group for group in groups if any(p is weight for p in group["params"])), groups[0])
        group = {option: value for option, value in like.items() if option not in ("params", "param_names")}
        group["params"] = own if "param_names" in like else [p for _, p in own]
        if lr is not None:
            group["lr"] = lr
        if own:
            optimizer.add_param_group(group)
        self._model.add_module(ATTACHED, self.classifiers)
        self.modalities.attach()
        self.replicas.attach(self._model)
        if self.responses is not None:
            self.responses.attach()

    def detach(self, optimizer: Optimizer) -> None:
        """Undo `attach`: the model is as it was before, with what it has learnt."""
        self.modalities.detach()
        self.replicas.detach()
        if self.responses is not None:
            self.responses.detach()
        delattr(self._model, ATTACHED)
        own = self._own()
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if not own.issuperset(g["params"])]
        for parameter in own:
            optimizer.state.pop(parameter, None)

    def _own(self) -> set[Tensor]:
        """The classifiers' parameters that are not the model's anyway; to be asked while they are not attached."""
        return set(self.classifiers.parameters()) - set(self._model.parameters())


def _check_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    if isinstance(model, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise TypeError(
            f"model is an {type(model).__name__}, whose own children would include the attached classifiers; "
            "make it an attribute of a module of your own"
        )
    if hasattr(model, ATTACHED):
        raise ValueError(f"model already carries {ATTACHED}: call detach() on its former wrapper first")
    return model


def _check_head(head: nn.Module, path: str) -> None:
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise ValueError(
            f"head: {path!r} is a {type(head).__name__} without a weight matrix; name the fusion's output layer "
            "(an nn.Linear, say), not the block around it"
        )
