"""The unimodal classifiers' losses on a batch: where they are small perceptrons, all of them in one kernel call.

Some twenty operations a classifier, forward and backward, cost a small model more than their arithmetic does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cggm_ops import missing_reason, perceptrons

from ..tasks import Classification, Task
from .classifier_modules import UnimodalClassifier

#: Multiplications of one classifier's forward pass beyond which a matrix library is faster than the kernel, and the
#: rows as which fewer count: the kernel arranges every weight first, however few rows there are.
LARGEST, FEWEST = 4_000_000, 16

_PLAIN = (nn.Parameter, Tensor)  # no subclass, such as a DTensor
_RELU = nn.ReLU()
_COMPILED = missing_reason() is None

Network = tuple[bool, list[Tensor]]  # whether a rectifier comes first; weight and bias of each layer


class Evaluation(NamedTuple):
    """What the unimodal classifiers make of a batch."""

    total: Tensor  # sum of the M losses, 0-dimensional, with its graph
    losses: Tensor  # [M] float32, outside of autograd
    outputs: Sequence[Tensor] | Tensor  # M outputs


def evaluate(
    classifiers: Sequence[nn.Module], features: Sequence[Tensor], task: Task, target: Tensor
) -> Evaluation:
    """Run the classifiers on their features, and the task's loss on what they put out.

    Args:
        classifiers: M modules.
        features: M tensors.
        task: its loss trains the classifiers.
        target: in a form that the task knows.

    Raises:
        ValueError: a target that does not fit.
    """
    if _kernel_knows(task, target):
        networks = list(map(_network, classifiers, features))
        if all(networks) and _agree(networks, features, target):
            rectified, parameters = zip(*networks, strict=True)
            return Evaluation(*perceptrons(features, parameters, target, rectified=rectified))
    outputs = [_run(classifier, x) for classifier, x in zip(classifiers, features, strict=True)]
    losses = [task.loss(output, target).float() for output in outputs]
    with torch.no_grad():
        measured = torch.stack(losses)  # [M]
    return Evaluation(sum(losses[1:], losses[0]), measured, outputs)


def _run(classifier: nn.Module, features: Tensor) -> Tensor:
    if not torch.is_autocast_enabled(features.device.type):
        features = features.to(next((p.dtype for p in classifier.parameters()), features.dtype))
    return classifier(features)


def _kernel_knows(task: Task, target: Tensor) -> bool:
    """Whether the loss is the kernel's, here and now."""
    return (
        type(task) is Classification
        and task.label_smoothing == 0
        and target.is_cpu
        and target.dtype is torch.int64
        and target.ndim == 1
        and _COMPILED
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not _has_any_global_hook()
    )


def _network(classifier: nn.Module, features: Tensor) -> Network | None:
    """A classifier as the kernel takes it; None if it is anything else, or too large to be worth it.

    What has been hooked, replaced or given parametrizations must run as a module.
    """
    if features.ndim != 2 or not _is_plain(features):
        return None
    rows, width = features.shape
    parameters: list[Tensor] = []
    rectified = [False]  # before each linear layer
    multiplications = 0
    for module in _chain(classifier):
        if _is_hooked(module):
            return None
        if type(module) is nn.ReLU:
            rectified[-1] = True
            continue
        if type(module) is not nn.Linear:
            return None
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if not (_is_plain(weight) and _is_plain(bias)) or weight.shape[1] != width:
            return None
        parameters += (weight, bias)
        rectified.append(False)
        width = weight.shape[0]
        multiplications += max(rows, FEWEST) * weight.numel()
    between = all(rectified[1:-1]) and not rectified[-1]
    return (rectified[0], parameters) if between and 0 < multiplications <= LARGEST else None


def _agree(networks: Sequence[Network], features: Sequence[Tensor], target: Tensor) -> bool:
    """Whether there are as many rows, and as many outputs, everywhere."""
    outputs = {len(parameters[-1]) for _, parameters in networks}
    return len(outputs) == 1 and all(len(x) == len(target) for x in features)


def _chain(classifier: nn.Module) -> Iterable[nn.Module]:
    """The modules that a classifier runs one after the other; itself where it is no chain, or hooked as a whole."""
    if type(classifier) is nn.Sequential and not _is_hooked(classifier):
        return classifier._modules.values()
    if type(classifier) is UnimodalClassifier and classifier.attention is None and not _is_hooked(classifier):
        return classifier.hidden, _RELU, classifier.output
    return (classifier,)


def _is_hooked(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _is_plain(tensor: Tensor | None) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype is torch.float32 and tensor.is_cpu
