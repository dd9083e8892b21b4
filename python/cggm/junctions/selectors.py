"""Selectors: find the features in an encoder's output."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Step = int | str
Path = tuple[Step, ...]  # one step per level of nesting; () is the output itself
Selector = Step | Path | None


def select(output: Any, selector: Selector, name: str) -> tuple[Tensor, Path]:
    """The features inside an encoder's output, and the path to them, as `floating_tensors` writes it.

    Without a selector: a tensor itself, the first floating tensor of a tuple or list, or the `pooler_output`,
    `last_hidden_state`, ... (the first floating tensor) of a mapping or dataclass output.

    Args:
        output: the encoder's output.
        selector: an index, a key or an attribute; a tuple of them for a nested output; None to search.
        name: the modality, for errors.

    Raises:
        TypeError: the selector does not lead to a tensor, and the message lists the tensors in the output; or the
            features are complex.

    >>> select((torch.ones(2, 3), (torch.ones(1, 2), torch.zeros(1, 2))), (1, -1), "audio")
    (tensor([[0., 0.]]), (1, 1))
    """
    found, path = _find(output, selector, name)
    if found.is_complex():
        raise TypeError(
            f"encoder {name!r}: its features are complex ({found.dtype}), but unimodal classifiers and policies need "
            "real ones: have the encoder put out torch.view_as_real(features).flatten(-2), or their magnitude"
        )
    return found, path


def _find(output: Any, selector: Selector, name: str) -> tuple[Tensor, Path]:
    if selector is not None:
        path: Path = ()
        found = output
        try:
            for step in selector if isinstance(selector, tuple) else (selector,):
                step = _canonical(found, step)
                found = _child(found, step)
                path = (*path, step)
        except (LookupError, AttributeError, TypeError, ValueError):
            found = None
        if isinstance(found, Tensor):
            return found, path
        raise TypeError(
            f"encoders[{name!r}]: output={selector!r} names no tensor in the encoder's output of type "
            f"{type(output).__name__}, whose tensors are {_listed(output)}"
        )
    if isinstance(output, Tensor):
        return output, ()
    candidates = list(_children(output))
    if isinstance(output, Mapping):
        candidates.sort(key=lambda child: _PREFERRED.get(child[0], len(_PREFERRED)))
    for step, value in candidates:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value, (step,)
    raise TypeError(
        f"encoder {name!r}: no features found in its output of type {type(output).__name__}, whose tensors are "
        f"{_listed(output)}; name them, as in encoders={{{name!r}: (module, 'field')}}"
    )


_PREFERRED = {"pooler_output": 0, "last_hidden_state": 1}


def replace(output: Any, path: Path, features: Tensor) -> Any:
    """A copy of the encoder's output with other features at the path; the original is not mutated.

    Raises:
        TypeError: the output cannot be changed there, as at a property.

    >>> replace((1, [2, 3]), (1, 1), torch.ones(1))
    (1, [2, tensor([1.])])
    """
    if not path:
        return features
    step = path[0]
    new = replace(_child(output, step), path[1:], features)
    if isinstance(output, tuple):
        items = [new if i == step else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    output = output.copy() if type(output) in (dict, list) else copy.copy(output)  # the first can be traced
    try:
        if isinstance(output, (list, Mapping)):
            output[step] = new  # type: ignore[index]
        elif is_dataclass(output) and output.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            object.__setattr__(output, str(step), new)  # the copy is ours
        else:
            setattr(output, str(step), new)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"the wrapper must replace {step!r} in an encoder's output of type {type(output).__name__}, which does not "
            f"allow it ({error}): name what can be set, one of {_listed(output)}, or return a tuple, a dict or a "
            "dataclass"
        ) from error
    return output


def floating_tensors(output: Any, depth: int = 3) -> Iterator[tuple[Path, Tensor]]:
    """All floating tensors of an encoder's output and their paths, up to `depth` levels of nesting.

    >>> [path for path, _ in floating_tensors({"a": torch.ones(1), "b": (None, torch.ones(1))})]
    [('a',), ('b', 1)]
    """
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield (), output
    elif depth:
        for step, value in _children(output):
            for path, tensor in floating_tensors(value, depth - 1):
                yield (step, *path), tensor


def _canonical(output: Any, step: Step) -> Step:
    """Convert a negative index, a named tuple's field, or a number in a mapping to the step used by `_children`."""
    if isinstance(output, tuple) and isinstance(step, str):
        return output._fields.index(step)  # type: ignore[attr-defined]
    if isinstance(output, (tuple, list)):
        return range(len(output))[step]
    if isinstance(output, Mapping) and step not in output:
        return list(output)[step]  # type: ignore[index]
    return step


def _child(output: Any, step: Step) -> Any:
    return output[step] if isinstance(output, (tuple, list, Mapping)) else getattr(output, str(step))


def _children(output: Any) -> Iterator[tuple[Step, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (tuple, list)):
        yield from enumerate(output)
    elif not isinstance(output, torch.nn.Module):
        names = dict.fromkeys(vars(output)) if hasattr(output, "__dict__") else {}
        if is_dataclass(output) and hasattr(output, "__slots__"):
            names |= dict.fromkeys(field.name for field in fields(output))
        yield from ((name, getattr(output, name)) for name in names)


def _listed(output: Any) -> str:
    found = [f"{as_selector(path)!r} {list(tensor.shape)}" for path, tensor in floating_tensors(output, 8)]
    return ", ".join(found) or "none"


def as_selector(path: Path) -> Selector:
    """A path as a user writes it."""
    return path[0] if len(path) == 1 else path or None
