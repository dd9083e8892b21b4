"""Checks on a state dict before anything is loaded from it, so that an error changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

FIX = "pass what this wrapper's state_dict() returned, after torch.load() where it is in a file"


def check_containers(state_dict: Any) -> None:
    """Refuse what is no optimizer's state dict.

    Raises:
        TypeError: it, or a field of it, is of another type.
        ValueError: a field is missing.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dictionary, got {type(state_dict).__name__}; {FIX}")
    for field, kind in (("state", Mapping), ("param_groups", (list, tuple))):
        if field not in state_dict:
            raise ValueError(f"state_dict has no field {field!r}; {FIX}")
        if not isinstance(state_dict[field], kind):
            found = type(state_dict[field]).__name__
            wanted = "a dictionary" if kind is Mapping else "a list"
            raise TypeError(f"state_dict[{field!r}] must be {wanted}, got {found}; {FIX}")
    for key, entry in state_dict["state"].items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"state_dict['state'][{key!r}] must be a dictionary, got {type(entry).__name__}; {FIX}"
            )
    for number, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            raise TypeError(
                f"state_dict['param_groups'][{number}] must be a dictionary with a list 'params'; {FIX}"
            )


def check_groups(saved: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Refuse parameter groups of other lengths than the optimizer's, or without a learning rate that is a number.

    Raises:
        TypeError, ValueError: there are some.
    """
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in saved]
    if here != there:
        raise ValueError(
            f"state_dict['param_groups'] holds {there} parameters, but the optimizer has {here} here, the unimodal "
            "classifiers' in the last group; wrap a model with the same parameters, modalities and classifiers"
        )
    for number, group in enumerate(saved):
        lr = group.get("lr", 0.0)
        if isinstance(lr, bool) or not isinstance(lr, (Real, Tensor)):
            raise TypeError(f"state_dict['param_groups'][{number}]['lr'] must be a number, got {lr!r}")


def check_values(what: str, saved: Any, like: Tensor, any_width: bool = False) -> None:
    """Refuse a saved value that cannot be copied into a tensor.

    Args:
        what: names the value in the message.
        saved: the value.
        like: the tensor.
        any_width: whether the second dimension may differ.

    Raises:
        TypeError: not a dense tensor with data, of floating-point numbers where the other one is.
        ValueError: another shape.
    """
    dense = isinstance(saved, Tensor) and not (saved.is_meta or saved.is_quantized or saved.is_nested)
    if not dense or saved.layout != like.layout or saved.is_floating_point() != like.is_floating_point():
        found = type(saved).__name__
        if isinstance(saved, Tensor):
            found = f"one of {saved.dtype} and layout {saved.layout} on {saved.device}"
        raise TypeError(f"state_dict: {what} must be a dense floating-point tensor with data, got {found}")
    there, here = list(saved.shape), list(like.shape)
    if any_width and len(there) > 1 and there[1] > 0:
        here[1:2] = there[1:2]
    if there != here:
        raise ValueError(
            f"state_dict: {what} was saved as {there}, but is {list(like.shape)} here; it was saved with other "
            "modalities, classifiers or another policy"
        )


def load_base(optimizer: Optimizer, state_dict: Mapping[str, Any], resized: Mapping[Tensor, Tensor]) -> None:
    """Load the wrapped optimizer's own state dict, and put its former state back where that fails.

    Args:
        optimizer: the wrapped one.
        state_dict: its own; torch itself does not compare it with the kind of optimizer.
        resized: parameters that get another shape afterwards, with a tensor of that shape.

    Raises:
        ValueError: the state of another kind of optimizer.
    """
    kept = {name: vars(optimizer)[name] for name in ("state", "param_groups") if name in vars(optimizer)}
    options = [set(group) for group in optimizer.param_groups]
    kind = type(optimizer).__name__
    try:
        for number, (saved, own) in enumerate(zip(state_dict["param_groups"], options, strict=True)):
            foreign = sorted(set(saved) - own - {"initial_lr", "param_names"})
            missing = sorted(own - set(saved) - {"initial_lr", "param_names"})
            if foreign and missing:
                raise _foreign(kind, number, foreign, missing)
        try:
            optimizer.load_state_dict(state_dict)
        except KeyError as error:
            raise ValueError(
                f"state_dict was not saved by {kind}: its state lacks {error}; {_SAME}"
            ) from error
        for number, (group, own) in enumerate(zip(optimizer.param_groups, options, strict=True)):
            missing = sorted(own - set(group) - {"initial_lr", "param_names"})
            if missing:
                raise _foreign(kind, number, [], missing)
        _check_state(optimizer, resized)
    except BaseException:
        vars(optimizer).update(kept)
        raise


_SAME = "make the optimizer of the same class as the one that was saved"


def _foreign(kind: str, number: int, foreign: list[str], missing: list[str]) -> ValueError:
    has = f" and has {foreign}" if foreign else ""
    return ValueError(
        f"state_dict was not saved by {kind}: its param_groups[{number}] lacks {missing}{has}; {_SAME}"
    )


def _check_state(optimizer: Optimizer, resized: Mapping[Tensor, Tensor]) -> None:
    """Refuse state of other shapes than the parameters', which all of torch's optimizers but Adafactor keep."""
    if type(optimizer).__module__.split(".")[:2] != ["torch", "optim"] or isinstance(
        optimizer, optim.Adafactor
    ):
        return
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        shape = resized.get(parameter, parameter).shape
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.numel() != 1 and value.shape != shape:
                raise ValueError(
                    f"state_dict: {name!r} of parameter {number} was saved as {list(value.shape)}, but the parameter "
                    f"is {list(shape)}; it was saved with another model"
                )
