"""The user's model as balanced training sees it: encoders, head, and the unimodal classifiers attached to it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from ..distributed.context import DistributedContext
from ..policies.plan import Plan
from ..policies.scores import MaskedScores
from ..torch_private import own_parameter
from .checks import check_apart, check_direction, check_head, check_model, stored_weight
from .classifiers import ATTACHED, NoClassifier, UnimodalClassifiers, build_classifiers, no_classifiers
from .coalitions import CoalitionForward
from .encoder import Encoder
from .encoders import EncoderSet
from .head_split import HeadSplit
from .lookup import find_module, submodule
from .masked import MaskedForward
from .reading import FeatureReader


class CapturedRun(NamedTuple):
    """The features recorded in one forward pass."""

    captured: Sequence[Tensor]  # M features, as the encoders put them out
    features: Sequence[Tensor]  # M, as the classifiers read them
    masks: Sequence[Tensor | None]  # M masks of their positions


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
        self._head_path, found = (None, None) if head is None else find_module(self.module, head, "head")
        if found is None and (plan.scores.classifiers or plan.policy.objective is not None):
            raise ValueError(
                "head: None works without unimodal classifiers and objectives alone; name the fusion's output layer, "
                'or pass scores="masked" with a policy of coefficients, as policy=CGGM()'
            )
        self.encoders = EncoderSet(self.module, encoders, plan)
        own = self.encoders.encoder_parameters()
        check_apart(self.module, self.encoders.paths, own, self._head_path)
        modules = dict(zip(self.encoders.names, self.encoders.modules(), strict=True))
        choices = {name: encoder.classifier for name, encoder in encoders.items()}
        with parametrize.cached():  # a spectral norm would take a step at every read of the weight
            if found is not None:
                check_head(found, self._head_path)
                check_direction(plan, found, self._head_path)
            self.classifiers: UnimodalClassifiers = (
                build_classifiers(choices, modules, found)
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
        self.context = context
        context.adopt(self.classifiers)
        self.coalitions: CoalitionForward | None = None
        self.head_split: HeadSplit | None = None
        if plan.policy.objective is not None or plan.reads("responses") is not None:
            self.coalitions = CoalitionForward(self.module, self._head_path, self.encoders)
        if plan.reads("head") is not None:
            self.head_split = HeadSplit(self.module, self._head_path)

    @property
    def has_classifiers(self) -> bool:
        """Whether there are unimodal classifiers: scores may come from elsewhere."""
        return not any(isinstance(child, NoClassifier) for child in self.classifiers.children())

    @property
    def head_weight(self) -> Tensor:
        """The head's weight `[C, H]`; where it is computed, the parameter of that size that it is computed from."""
        if self._head_path is None:
            raise RuntimeError("this needs the model's head: pass head= to the constructor")
        return stored_weight(submodule(self.module, self._head_path))

    def own_parameters(self) -> list[Tensor]:
        """The model's parameters without those that the unimodal classifiers alone have."""
        named = self.module.named_parameters(remove_duplicate=False)
        return [p for name, p in named if not name.startswith(f"{ATTACHED}.")]

    def head_gradients(self) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the head's weight and of the classifiers' output weights, each of the head's shape.

        The first is None where any of them is missing: there is nothing to compare then.
        """
        if not self.has_classifiers or self._head_path is None:
            return None, []
        unimodal = [w.grad for w in self.classifiers.output_weights() if w.grad is not None]
        complete = len(unimodal) == len(self.encoders.names)
        weight = own_parameter(submodule(self.module, self._head_path), "weight")
        return (weight.grad if complete and weight is not None else None), unimodal

    def read_features(self, loss: Tensor | None, target: Tensor, detach: bool) -> list[CapturedRun]:
        """The features of every forward pass that the loss comes from, and how the classifiers read them.

        Args:
            loss: the multimodal loss; None for the one forward pass just made, in evaluation mode.
            target: tells how many samples there are where no features do.
            detach: whether the classifiers see detached features.

        Raises:
            RuntimeError: as `EncoderSet.features`; several passes where the policy knows one only.
            ValueError: a layout or a mask that does not fit, or a layout that has to be told; passes of several sizes.
        """
        runs = self.encoders.features(loss)
        if len(runs) > 1 and (self.coalitions or self.head_split):
            raise RuntimeError(
                f"this loss comes from {len(runs)} forward passes of the encoders, and this policy scores one: AGM(), "
                "OGMGE(split_head=True) and TCMax() run or split the fusion of a single pass; take another policy, or "
                "call balance() and backward() for each pass"
            )
        return [self._read(number, run, target, detach, len(runs) > 1) for number, run in enumerate(runs)]

    def _read(
        self, number: int, captured: Sequence[Tensor], target: Tensor, detach: bool, several: bool
    ) -> CapturedRun:
        found = [reader.samples(x) for reader, x in zip(self.readers, captured, strict=True)]
        samples = next((size for size in found if size is not None), None) or target.shape[0]
        if several and samples != target.shape[0]:
            raise ValueError(
                f"target has {target.shape[0]} samples, and forward pass {number + 1} of this loss had {samples}: its "
                "classifiers need one target for each; give balance() the target of one view, and every pass its size"
            )
        read = []
        for reader, x, hook, modules in zip(
            self.readers, captured, self.encoders.hooks, self.encoders.parts(), strict=True
        ):
            inputs = hook.inputs[number] if hook.inputs else None
            read.append(reader.read(x.detach() if detach else x, inputs, samples, modules))
        features, masks = zip(*read, strict=True)
        return CapturedRun(captured, features, masks)

    def count_samples(self, captured: Sequence[Tensor], target: Any) -> int:
        """How many samples the features of a forward pass are of; the target's first axis where they do not say."""
        found = [reader.samples(x) for reader, x in zip(self.readers, captured, strict=True)]
        known = next((size for size in found if size is not None), None)
        return len(target) if known is None else known

    def gradients_were_cleared(self) -> bool:
        """Whether gradients that went backward are gone; sharded ones may only not have been reduced yet."""
        return not self.context.sharded and not self.encoders.have_gradients()

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self.encoders.forget()
        for watcher in self._watchers():
            watcher.forget()

    def _watchers(self) -> list[CoalitionForward | HeadSplit | MaskedForward]:
        return [w for w in (self.coalitions, self.head_split, self.masked) if w is not None]

    def attach(self, optimizer: Optimizer, lr: float | None) -> None:
        """Put hooks on the encoders, and the classifiers into the model and into a parameter group of their own.

        Args:
            optimizer: gets a group of those classifier parameters that are neither the model's nor its already.
            lr: the group's learning rate; None for that of the group whose options it takes: the head's, or the
                first where the optimizer does not have the head.
        """
        trained = {i for p, i in self.encoders.encoder_parameters() if p.requires_grad}
        for index, name in enumerate(self.encoders.names):
            if index not in trained:
                warnings.warn(
                    f"encoder {name!r} is frozen: its score counts, but there is nothing to modulate",
                    stacklevel=5,
                )
        new = self._own().difference(*(group["params"] for group in optimizer.param_groups))
        own = [(f"{ATTACHED}.{name}", p) for name, p in self.classifiers.named_parameters() if p in new]
        groups, weight = optimizer.param_groups, None if self._head_path is None else self.head_weight
        like = next((group for group in groups if any(p is weight for p in group["params"])), groups[0])
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
        own = set(self.classifiers.parameters()) - set(self.own_parameters())
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if not own.issuperset(g["params"])]
        optimizer.state = defaultdict(dict, {p: s for p, s in optimizer.state.items() if p not in own})

    def _set_owned(self, owned: bool) -> None:
        for part in (self.classifiers, *self.encoders.hooks, *self._watchers()):
            part.owned = owned

    def detach(self, optimizer: Optimizer) -> None:
        """Undo `attach`. The model keeps its trained weights."""
        self.encoders.detach()
        self.context.detach()
        for watcher in self._watchers():
            watcher.detach()
        delattr(self.module, ATTACHED)
        own = self._own()
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if not own.issuperset(g["params"])]
        for parameter in own:
            optimizer.state.pop(parameter, None)

    def _own(self) -> set[Tensor]:
        """The classifiers' parameters that are not the model's anyway; to be asked while they are not attached."""
        return set(self.classifiers.parameters()) - set(self.module.parameters())
