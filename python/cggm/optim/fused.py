"""Fused steps: torch's update rules with the coefficients built in, so that scaling costs no extra memory pass.

The kernels implement AdamW, Adam and SGD. A fused step reads each gradient, multiplies it by its coefficient in
registers, and then updates the parameter and the optimizer's state as `torch.optim` does. Every other optimizer takes
its own `step`. `FusedStep.unsupported_reason` alone decides whether a step can be fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cggm_ops import TRITON_OPERATORS, backend
from cggm_ops.checks import DTYPES, is_dense

from ..torch_private import has_pre_hooks, is_watched
from .fused_rules import RULES, Entry, Launch, Modulate, partition

_PLAIN = (nn.Parameter, Tensor)  # no subclasses: the kernels cannot update a DTensor


class FusedStep:
    """Takes the step of a `torch.optim.AdamW`, `Adam` or `SGD` with scales in the update rule.

    Args:
        base: any optimizer; `unsupported_reason` says whether its step can be fused.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._forget()

    def _forget(self) -> None:
        # Parameters and states that passed the layout check, with their addresses: `model.to(...)` changes those.
        self._fitting: tuple[list[Tensor], list[Entry], list[int]] = ([], [], [])
        self._entries: list[Entry] = []  # the state of each parameter, in the same order

    def __getstate__(self) -> dict[str, Any]:
        return {"_base": self._base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def _operator(self) -> str:
        return "sgd_" if type(self._base) is SGD else "adamw_"

    def unsupported_reason(self) -> str | None:
        """Why the optimizer has to take its own step; None if the kernels can take it."""
        base = self._base
        if type(base) not in RULES:
            return f"{type(base).__name__} is none of {', '.join(rule.__name__ for rule in RULES)}"
        if not vars(base).keys().isdisjoint(_SET_FROM_OUTSIDE):
            return "a scheduler or scaler was made for the wrapped optimizer and not for the wrapper"
        if has_pre_hooks(base):
            return "a hook runs before the wrapped optimizer's step, and may read gradients"
        for group in base.param_groups:
            reason = _outside(group)
            if reason is not None:
                return reason
        parameters = [p for group in base.param_groups for p in group["params"]]
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and (
                gradient.layout is not torch.strided or gradient.dtype is not parameter.dtype
            ):
                return (
                    f"a gradient is {gradient.layout} and {gradient.dtype}, its parameter {parameter.dtype}"
                )
        return self._layout_reason(parameters)

    def prepared(self, modulate: Modulate) -> list[Launch]:
        """The launches that take the step. Call them under `torch.no_grad()`.

        No parameter has changed yet. Call this right after `unsupported_reason()` returned None.

        Args:
            modulate: returns the scales for a list of parameters with gradients, equal options and one device.
        """
        _, prepare = RULES[type(self._base)]
        batches = self._batches()
        return [launch for batch in batches for launch in prepare(self._base, *batch, modulate)]

    def run(self, take: Callable[[], None]) -> None:
        """Call `take` between the base's hooks and under its profiler label, as the base's own step runs."""

        def run(base: Optimizer) -> None:
            take()

        if is_watched(self._base):
            run = Optimizer.profile_hook_step(run)
        run(self._base)

    def _batches(self) -> Iterator[tuple[Any, list[Tensor], list[Tensor], list[Entry]]]:
        """The arguments of each kernel call: settings, and the parameters with gradients that use these settings."""
        settings_of, _ = RULES[type(self._base)]
        numbers: dict[Any, int] = {}
        options: list[int] = []
        for group in self._base.param_groups:
            key = settings_of(group), bool(group.get("fused"))  # a fused Adam counts its steps on the device
            number = numbers.setdefault(key, len(numbers))
            options += [number] * len(group["params"])
        parameters = self._fitting[0]
        gradients = [p.grad for p in parameters]
        kinds = [
            None if gradient is None else (number, parameter.device)
            for parameter, gradient, number in zip(parameters, gradients, options, strict=True)
        ]
        settings = [each for each, _ in numbers]
        for kind, *lists in partition(kinds, parameters, gradients, self._entries):
            if kind is not None:
                yield settings[kind[0]], *lists

    def _layout_reason(self, parameters: list[Tensor]) -> str | None:
        """Why the kernels do not support these layouts; cached while parameters, states and addresses are unchanged."""
        state = self._base.state
        entries = list(state.values())
        known, known_entries, places = self._fitting
        if _same(known, parameters) and _same(known_entries, entries) and places == _addresses(parameters):
            return None
        for parameter in parameters:
            if type(parameter) not in _PLAIN or parameter.dtype not in DTYPES:
                return f"a parameter is a {type(parameter).__name__} of {parameter.dtype}"
            kernels = backend(parameter.device)
            if kernels == "reference" or (kernels == "triton" and self._operator not in TRITON_OPERATORS):
                return f"there is no kernel of {self._operator} for {parameter.device}"
            if not is_dense(parameter):
                return "a parameter does not fill its memory without gaps"
            for name, tensor in state.get(parameter, {}).items():
                if name not in _LIKE_PARAMETER or tensor is None:
                    continue
                if tensor.stride() != parameter.stride() or tensor.dtype is not parameter.dtype:
                    return f"the state {name!r} has other strides or another dtype than its parameter"
        ranges = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters if p.numel())
        if any(end > start for (_, end), (start, _) in pairwise(ranges)):
            return "two parameters share memory, and have to be stepped one after the other"
        fitting = (parameters, entries, _addresses(parameters))
        self._entries, self._fitting = [state.get(p, {}) for p in parameters], fitting
        return None


def _addresses(parameters: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, parameters))


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


_SET_FROM_OUTSIDE = ("step", "grad_scale", "found_inf")
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def _outside(group: dict[str, Any]) -> str | None:
    """Why the kernels do not support a parameter group's options, or None."""
    for option in ("amsgrad", "capturable", "differentiable"):
        if group.get(option):
            return f"{option}=True"
    for option in ("lr", "weight_decay"):
        value = group[option]
        if isinstance(value, Tensor) and (value.is_cuda or value.requires_grad):
            return f"{option} is a tensor on {value.device} that the host cannot read without waiting"
    if any(isinstance(beta, Tensor) for beta in group.get("betas", ())):
        return "betas are tensors"
    if "betas" in group and not group.get("fused") and capturing():
        return "a CUDA graph is being captured, which would not count the steps: pass fused=True or capturable=True"
    return None


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
