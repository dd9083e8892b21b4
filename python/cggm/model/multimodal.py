"""The user's model as balanced training sees it: encoders, head, and the unimodal classifiers attached to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from ..distributed.context import DistributedContext
from ..policies.plan import Plan
from ..policies.scores import MaskedScores
from ..torch_private import first_parameter, own_parameter
from ..user_warning import warn_user
from .captured import CapturedRun, read_run
from .checks import check_head, check_head_apart, check_hooks, check_model, stored_weight
from .classifiers import ATTACHED, UnimodalClassifiers, build_classifiers, no_classifiers
from .coalitions import CoalitionForward
from .encoder import Encoder
from .encoders import EncoderSet
from .fusion_classifier import FusionClassifier, read_fused
from .guard import LossGuard
from .head_split import HeadSplit
from .listed_modules import ListedModules
from .lookup import find_module, submodule
from .masked import MaskedForward
from .reading import FeatureReader

_AGAIN = "AGM(), OGMGE(split_head=True), TCMax() and Encoder(classifier='fusion')"


class MultimodalModel:
    """Finds the parts of a model by name, and attaches and detaches hooks and unimodal classifiers.

    It looks modules up by name at every use, because sharding and compilation replace objects but keep names.

    Args:
        model: the user's model, behind `torch.compile` or `DistributedDataParallel` or not.
        encoders: modality -> encoder.
        head: the fusion's output layer, by name or module; None where nothing needs it.
        plan: what is done at the encoders' outputs, and what is scored.
        context: how the model is distributed; adopts the classifiers.

    Raises:
        TypeError, ValueError: an argument that cannot work; nothing has been attached then.
    """

    def __init__(
        self,
        model: nn.Module,
        encoders: Mapping[str, Encoder],
        head: str | nn.Module | None,
        plan: Plan,
        context: DistributedContext,
    ) -> None:
        self.module = check_model(model)
        path, found = (None, None) if head is None else find_module(self.module, head, "head")
        self._head_path: str | None = path
        check_head(plan, found, path)
        self.encoders = EncoderSet(self.module, encoders, plan)
        check_head_apart(self.encoders.paths, self._head_path)
        check_hooks(dict(zip(self.encoders.names, self.encoders.parts(), strict=True)))
        modules = dict(zip(self.encoders.names, self.encoders.modules(), strict=True))
        choices = {name: encoder.classifier for name, encoder in encoders.items()}
        fused = read_fused(choices, path, context.sharded)
        self.coalitions: CoalitionForward | None = None
        if fused or plan.policy.objective is not None or plan.reads("responses") is not None:
            self.coalitions = CoalitionForward(self.module, path, self.encoders)
        choices |= {name: FusionClassifier(self.coalitions, index) for name, index in fused.items()}
        with parametrize.cached():  # a spectral norm would take a step at every read of the weight
            self.classifiers: UnimodalClassifiers = (
                build_classifiers(
                    choices,
                    modules,
                    found,
                    compares=plan.direction is not None,
                    borrowed=self.module.parameters(),
                )
                if plan.scores.classifiers
                else no_classifiers(choices, self.module)
            )
        self.readers = [
            FeatureReader(name, encoders[name], self.encoders.layouts[name], child)
            for name, child in self.classifiers.named_children()
        ]
        self.masked = (
            MaskedForward(self.module, self.encoders) if isinstance(plan.scores, MaskedScores) else None
        )
        self.listed = ListedModules(self.encoders, masked=self.masked is not None)
        self.guard = LossGuard(self.classifiers, self.module)
        self.context = context
        context.adopt(self.classifiers)
        self.head_split: HeadSplit | None = None
        if plan.reads("head") is not None:
            self.head_split = HeadSplit(self.module, self._head_path)

    @property
    def head_weight(self) -> Tensor | None:
        """The head's weight `[C, H]`; where it is computed, the parameter of that size that it is computed from.

        None without a head, or where it has no weight.
        """
        return None if self._head_path is None else stored_weight(submodule(self.module, self._head_path))

    @property
    def device(self) -> torch.device:
        """Where the scores are: the head's device, or without a head's weight that of the first parameter."""
        weight = self.head_weight
        return (first_parameter(self.module) if weight is None else weight).device

    def own_parameters(self) -> list[Tensor]:
        """The model's parameters without those that the unimodal classifiers alone have."""
        named = self.module.named_parameters(remove_duplicate=False)
        return [p for name, p in named if not name.startswith(f"{ATTACHED}.")]

    def head_gradients(self) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the head's weight and of the classifiers' output weights, each of the head's shape.

        The first is None where any of them is missing: there is nothing to compare then.
        """
        unimodal = [w.grad for w in self.classifiers.output_weights() if w.grad is not None]
        complete = len(unimodal) == len(self.encoders.names)
        if not complete or self._head_path is None:
            return None, unimodal
        weight = own_parameter(submodule(self.module, self._head_path), "weight")
        return (None if weight is None else weight.grad), unimodal

    def read_features(
        self,
        loss: Tensor | None,
        target: Any,
        detach: bool,
        present: Mapping[str, Tensor | bool] | None = None,
    ) -> list[CapturedRun]:
        """The features of every forward pass that the loss comes from, and how the classifiers read them.

        Args:
            loss: the multimodal loss; None for the one forward pass just made, in evaluation mode.
            target: tells how many samples there are where no features do.
            detach: whether the classifiers see detached features.
            present: modality -> bool `[B]`, the samples that have it; None if all have all.

        Raises:
            RuntimeError: as `EncoderSet.features`; several passes where the policy knows one only.
            ValueError: a layout or a mask that does not fit, or a layout that has to be told; passes of several sizes;
                `present` with a policy that runs or splits the fusion again.
        """
        again = self.coalitions or self.head_split
        if present is not None and again:
            raise ValueError(
                f"present: {_AGAIN} run or split the fusion again, where a missing modality cannot be told from a weak "
                "one; take another policy or other classifiers"
            )
        runs = self.encoders.features(loss, () if present is None else present)
        if len(runs) > 1 and again:
            raise RuntimeError(
                f"this loss comes from {len(runs)} forward passes of the encoders, and this policy scores one: "
                f"{_AGAIN} run or split the fusion of a single pass; take another policy or other classifiers, or call "
                "balance() and backward() for each pass"
            )
        return [
            read_run(self, number, run, target, detach=detach, present=present, several=len(runs) > 1)
            for number, run in enumerate(runs)
        ]

    def gradients_were_cleared(self) -> bool:
        """Whether gradients that went backward are gone; sharded ones may only not have been reduced yet."""
        trained = [p for p, _ in self.encoders.encoder_parameters() if p.requires_grad]
        trained = trained or [p for p in self.classifiers.parameters() if p.requires_grad]
        return not self.context.sharded and bool(trained) and all(p.grad is None for p in trained)

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self.encoders.forget()
        for watcher in self._watchers():
            watcher.forget()

    def _watchers(self) -> list[CoalitionForward | HeadSplit | ListedModules | MaskedForward]:
        return [w for w in (self.coalitions, self.head_split, self.listed, self.masked) if w is not None]

    def attach(self, optimizer: Optimizer, lr: float | None) -> None:
        """Put hooks on the encoders, and the classifiers into the model and into a parameter group of their own.

        Args:
            optimizer: gets a group of those classifier parameters that are neither the model's nor its already.
            lr: the group's learning rate; None for that of the group whose options it takes: the head's, or without
                a head the first that has a parameter outside the encoders, or the first.
        """
        owned = self.encoders.encoder_parameters()
        trained = {i for p, i in owned if p.requires_grad}
        for index, name in enumerate(self.encoders.names):
            if index not in trained:
                warn_user(
                    f"encoder {name!r} is frozen or has no parameters of its own: its score counts, but there is "
                    "nothing to modulate"
                )
        known = {p for group in optimizer.param_groups for p in group["params"]}
        own = [(f"{ATTACHED}.{name}", p) for name, p in self.classifiers.own_parameters() if p not in known]
        groups, weight, encoders = optimizer.param_groups, self.head_weight, {p for p, _ in owned}
        after = [group for group in groups if not encoders.issuperset(group["params"])]
        like = next((g for g in groups if any(p is weight for p in g["params"])), (after or groups)[0])
        group = {option: value for option, value in like.items() if option not in ("params", "param_names")}
        group["params"] = own if "param_names" in like else [p for _, p in own]
        if lr is not None:
            group["lr"] = lr
        if own:
            optimizer.add_param_group(group)
        self.module.add_module(ATTACHED, self.classifiers)
        self.encoders.attach()
        self.context.attach(self.module)
        for watcher in self._watchers():
            watcher.attach()

    def own(self) -> None:
        """Let hooks act that were copied with a wrapper; in a copy of the model alone they do nothing."""
        self._set_owned(True)

    def disown(self, optimizer: Optimizer) -> None:
        """Make hooks and classifiers do nothing; the optimizer forgets the classifiers."""
        # Garbage collection may call this while something iterates over the model: no dictionary gets smaller.
        self._set_owned(False)
        self.forget()
        self._leave(optimizer)

    def _set_owned(self, owned: bool) -> None:
        for part in (self.classifiers, *self.encoders.hooks, *self._watchers()):
            part.owned = owned

    def detach(self, optimizer: Optimizer) -> None:
        """Undo `attach`. The model keeps its trained weights."""
        self.encoders.detach()
        self.guard.detach()
        self.context.detach()
        for watcher in self._watchers():
            watcher.detach()
        delattr(self.module, ATTACHED)
        self._leave(optimizer)

    def _leave(self, optimizer: Optimizer) -> None:
        """Take the classifiers' parameters and their state out of the optimizer."""
        own = {p for _, p in self.classifiers.own_parameters()}
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if not own.issuperset(g["params"])]
        optimizer.state = defaultdict(dict, {p: s for p, s in optimizer.state.items() if p not in own})
