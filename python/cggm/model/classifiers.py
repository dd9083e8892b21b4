"""Unimodal classifiers: one light network per modality that tells how well it does on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..junctions.layouts import last_layer
from ..tasks import Task
from ..tasks.calls import TaskCalls
from .classifier_modules import DEFAULTS, UnimodalClassifier, UnimodalMapClassifier, fit_width
from .evaluation import UnimodalEvaluation, unimodal_losses
from .lookup import submodule

#: The name of the submodule that holds the classifiers on the user's model.
ATTACHED = "unimodal_classifiers"


class UnimodalClassifiers(nn.Module):
    """The classifiers of all modalities, attached to the user's model so that `.to()` and sharding carry them.

    They stay out of the model's state dict, which therefore fits the plain model, before, during and after
    training; the optimizer's state dict holds them instead.

    Args:
        classifiers: modality -> classifier.
        outputs: modality -> name of the output layer within that classifier, whose weight has the head's shape; empty
            where they are not comparable with the head.
        borrowed: parameters of the classifiers that are the model's own.
    """

    def __init__(
        self,
        classifiers: Mapping[str, nn.Module],
        outputs: Mapping[str, str],
        borrowed: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        for name, classifier in classifiers.items():
            self.add_module(name, classifier)
        models = set(borrowed)
        if models and models.issuperset(self.parameters()):  # checkpoints write to the first one of its own
            self.placeholder = nn.Parameter(next(iter(models)).new_empty(0), requires_grad=False)
        self._borrowed = {name for name, p in self.named_parameters() if p in models}
        self._outputs = [f"{name}.{path}".rstrip(".") for name, path in outputs.items()]
        self.owned = True  # False without a wrapper
        self.copied = False  # somebody has copied or pickled it
        self.register_state_dict_post_hook(_hide)
        self.register_load_state_dict_post_hook(_do_not_miss)

    def forward(
        self,
        features: Sequence[Tensor | None],
        task: Task | TaskCalls,
        target: Any,
        *,
        masks: Sequence[Tensor | None] | None = None,
        fit: bool = False,
    ) -> UnimodalEvaluation:
        """The losses and outputs, features in the order of the modalities.

        Args:
            features: M tensors; None if the encoder did not run.
            task: its loss trains the classifiers.
            target: in a form that the task knows.
            masks: as in `unimodal_losses`.
            fit: let the features correct the width that a default classifier guessed; only before anything
                has been learnt or distributed.

        Raises:
            ValueError: features of another width than the classifier was made for, a target that does not fit.
        """
        for (name, classifier), x in zip(self.named_children(), features, strict=True):
            if x is not None:
                fit_width(name, classifier, x, fit=fit, copied=self.copied)
        return unimodal_losses(list(self.children()), features, task, target, masks)

    def own_parameters(self) -> list[tuple[str, Tensor]]:
        """Names and parameters of the classifiers, without those that are the model's own."""
        return [(name, p) for name, p in self.named_parameters() if name not in self._borrowed]

    @property
    def comparable(self) -> bool:
        """Whether there are output layers of the head's shape."""
        return bool(self._outputs)

    def __getstate__(self) -> dict[str, Any]:
        self.copied = True
        return {**self.__dict__, "owned": False, "copied": False}

    def output_weights(self) -> list[Tensor]:
        """The M output layers' weights, each of the head's shape; empty where a classifier has no such layer."""
        return [submodule(self, path).weight for path in self._outputs]

    def guessed_weights(self) -> set[str]:
        """Names of the default classifiers' weights whose width is a guess until the first forward pass."""
        return {
            f"{name}.hidden.weight" for name, child in self.named_children() if isinstance(child, DEFAULTS)
        }


def _hide(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]


def _do_not_miss(module: nn.Module, incompatible_keys: Any) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if f"{ATTACHED}." not in key]


class NoClassifier(nn.Module):
    """Stands where a modality's classifier would, with a parameter of no elements that checkpoints write to."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.empty = nn.Parameter(like.new_empty(0), requires_grad=False)


def no_classifiers(choices: Mapping[str, Any], model: nn.Module) -> UnimodalClassifiers:
    """Placeholders for scores that need no classifiers.

    Raises:
        ValueError: a modality has a classifier all the same, or a name that no submodule can have.
    """
    _check_names(choices)
    for name, choice in choices.items():
        if choice is not None:
            raise ValueError(
                f'encoders[{name!r}]: it has a classifier, which is used with scores="classifiers" only; leave one '
                "of the two out"
            )
    like = next(model.parameters())
    return UnimodalClassifiers({name: NoClassifier(like) for name in choices}, {})


def _check_names(names: Iterable[Any]) -> None:
    """Refuse names that no submodule can have, and the comma, which separates them in checkpoints."""
    taken = UnimodalClassifiers({}, {})
    for name in names:
        text = isinstance(name, str) and name and not {".", ","} & set(name)
        if not text or name == "placeholder" or hasattr(taken, name):
            raise ValueError(f"encoders: {name!r} cannot name a submodule; call this modality something else")


def build_classifiers(
    choices: Mapping[str, Any],
    encoders: Mapping[str, nn.Module],
    head: nn.Module | None,
    *,
    compares: bool = False,
    borrowed: Iterable[Tensor] = (),
) -> UnimodalClassifiers:
    """One classifier per modality, its output layer found where it has the head's shape.

    Args:
        choices: modality -> as `Encoder.classifier`; modalities left out get the default.
        encoders: modality -> encoder.
        head: the fusion's output layer, or None.
        compares: whether the policy compares the head with output layers of its shape.
        borrowed: the model's parameters; a classifier may be a part of the model.

    Raises:
        ValueError: an unknown word; a head for which no default classifier is known, or none; one classifier for two
            modalities; with `compares`, a classifier without an output layer of the head's shape.
        TypeError: none of what a classifier can be.
    """
    built: dict[str, nn.Module] = {}
    outputs: dict[str, str] = {}
    _check_names(encoders)
    for name, encoder in encoders.items():
        choice = choices.get(name)
        pair = isinstance(choice, tuple) and len(choice) == 2 and isinstance(choice[0], nn.Module)
        module, layer = choice if pair else (choice, None)
        if not isinstance(module, nn.Module):
            module = _default(name, module, encoder, head)
        same = [other for other, its in built.items() if its is module]
        if same:
            raise ValueError(
                f"encoders: {same[0]!r} and {name!r} have the same classifier; give each its own"
            )
        built[name] = module
        found = None if head is None else _output_layer(name, module, head, layer, compares)
        if found is not None:
            outputs[name] = found
    return UnimodalClassifiers(built, outputs if len(outputs) == len(built) else {}, borrowed)


def _default(name: str, choice: Any, encoder: nn.Module, head: nn.Module | None) -> nn.Module:
    attention = choice == "attention"
    width = None if attention else choice
    if isinstance(width, bool) or not (width is None or (isinstance(width, int) and width > 0)):
        raise TypeError(
            f"encoders[{name!r}]: classifier must be a module, (module, 'its output layer'), the features' width, "
            f"'attention', 'fusion' or None, got {choice!r}"
        )
    if isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and head.groups == 1 and not attention:
        return UnimodalMapClassifier(width or last_layer(encoder)[1] or head.in_channels, head)
    if head is None:
        raise ValueError(
            f"encoders[{name!r}]: the default classifier is made like the head, and head is None: pass "
            "Encoder(..., classifier=nn.Linear(width, outputs)), a head that the model has for this modality, or "
            'UnimodalClassifier(width, nn.Linear(hidden, outputs)) for sequences and maps; or scores="masked" with '
            "policy=CGGM(), which need no classifiers"
        )
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"encoders[{name!r}]: there is no default classifier for a head of type {type(head).__name__} (nn.Linear "
            "and convolutions of one group have one, 'attention' needs nn.Linear): name the fusion's output layer, "
            "not the block around it, pass Encoder(..., classifier=module), or "
            'scores="masked" with policy=CGGM(), which need no classifiers'
        )
    return UnimodalClassifier(width or last_layer(encoder)[1] or head.in_features, head, attention=attention)


def _output_layer(
    name: str, classifier: nn.Module, head: nn.Module, named: str | None, needed: bool
) -> str | None:
    """The last layer whose weight has the head's shape, or the one that the user names; None without one."""
    wanted = list(getattr(getattr(head, "weight", None), "shape", ()))
    shapes = {
        key: list(module.weight.shape)
        for key, module in classifier.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and named in (None, key)
    }
    fitting = [key for key, shape in shapes.items() if shape == wanted]
    if not fitting and (needed or named is not None):
        raise ValueError(
            f"encoders[{name!r}]: its classifier has no output layer whose weight has the head's shape {wanted}, "
            f"found {shapes}; end the classifier in a layer like the head, name the layer: (module, 'name'), or take "
            "a policy that does not compare them, as CGGM(lam=0)"
        )
    return fitting[-1] if fitting else None
