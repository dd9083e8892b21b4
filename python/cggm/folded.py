"""Optimizer steps with coefficients folded in: torch's own update rules, without a pass over memory of their own.

Where the wrapped optimizer is one whose rule the kernels know, its step reads each gradient, multiplies it by its
coefficient in registers, and goes on as `torch.optim` does, on the same state. Everything else goes through the
wrapped optimizer's own `step`. Which of the two it is, is decided in `Folding.refusal` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

from cggm_ops import AdamSettings, Modulation, SGDSettings, adamw_, backend, sgd_
from cggm_ops.checks import DTYPES, is_dense

Entry = dict[str, Any]  # the optimizer's state of one parameter
Modulate = Callable[[list[Tensor]], Modulation]  # what applies to these parameters, all on one device

_PLAIN = (nn.Parameter, Tensor)  # no subclass: what is inside a DTensor is for its own optimizer to know


class Folding:
    """Steps a `torch.optim.AdamW`, `Adam` or `SGD` with scales folded into its update rule.

    Args:
        base: any optimizer; `refusal` tells whether it can be stepped here.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._forget()

    def _forget(self) -> None:
        self._fitting: tuple[list[Tensor], list[Entry]] = ([], [])  # parameters and states whose layouts fit
        self._entries: list[Entry] = []  # the states of the parameters, in their order

    def __getstate__(self) -> dict[str, Any]:
        return {"_base": self._base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def refusal(self) -> str | None:
        """Why the optimizer has to take its step itself, in words for people; None where it can be folded."""
        base = self._base
        if type(base) not in _RULES:
            return f"{type(base).__name__} is none of {', '.join(rule.__name__ for rule in _RULES)}"
        if not {"step", "grad_scale", "found_inf"}.isdisjoint(vars(base)):
            return "a scheduler or scaler was made for the wrapped optimizer and not for the wrapper"
        if base._optimizer_step_pre_hooks or torch_optimizer._global_optimizer_pre_hooks:
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

    def step(self, modulate: Modulate) -> None:
        """Take the step; only right after `refusal()` was None.

        Args:
            modulate: called for the parameters that have gradients, group by group and device by device.
        """

        def run(base: Optimizer) -> None:
            entries = iter(self._entries)
            for group in base.param_groups:
                _RULES[type(base)](base, group, list(islice(entries, len(group["params"]))), modulate)

        with torch.no_grad():
            Optimizer.profile_hook_step(run)(self._base)  # with hooks and label, as the optimizer's own step

    def _layout_reason(self, parameters: list[Tensor]) -> str | None:
        """Looked into once for the same parameters with the same states; torch keeps the layouts of what it makes."""
        state = self._base.state
        entries = list(state.values())
        if _same(self._fitting[0], parameters) and _same(self._fitting[1], entries):
            return None
        for parameter in parameters:
            if type(parameter) not in _PLAIN or parameter.dtype not in DTYPES:
                return f"a parameter is a {type(parameter).__name__} of {parameter.dtype}"
            if backend(parameter.device) == "reference":
                return f"there are no kernels for {parameter.device}"
            if not is_dense(parameter):
                return "a parameter does not fill its memory without gaps"
            for name, tensor in state.get(parameter, {}).items():
                if name not in _LIKE_PARAMETER or tensor is None:
                    continue
                if tensor.stride() != parameter.stride() or tensor.dtype is not parameter.dtype:
                    return f"the state {name!r} has other strides or another dtype than its parameter"
        self._fitting = (parameters, entries)
        self._entries = [state.get(p, {}) for p in parameters]
        return None


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def _outside(group: dict[str, Any]) -> str | None:
    """The option of a parameter group that the kernels do not know."""
    for option in ("amsgrad", "capturable", "differentiable"):
        if group.get(option):
            return f"{option}=True"
    for option in ("lr", "weight_decay"):
        value = group[option]
        if isinstance(value, Tensor) and (value.is_cuda or value.requires_grad):
            return f"{option} is a tensor on {value.device} that the host cannot read without waiting"
    if any(isinstance(beta, Tensor) for beta in group.get("betas", ())):
        return "betas are tensors"
    if "betas" in group and not group.get("fused") and _capturing():
        return "a CUDA graph is being captured, which would not count the steps: pass fused=True or capturable=True"
    return None


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _having_gradients(
    group: dict[str, Any], entries: list[Entry]
) -> tuple[list[Tensor], list[Tensor], list[Entry]]:
    """The parameters of a group that have gradients, those, and the states."""
    pairs = zip(group["params"], entries, strict=True)
    having = [(p, gradient, e) for p, e in pairs if (gradient := p.grad) is not None]
    params, grads, states = map(list, zip(*having, strict=True)) if having else ([], [], [])
    return params, grads, states


def _parts(kinds: list[Any]) -> Iterator[tuple[Any, Sequence[int]]]:
    """Each kind with its places in the list: a kernel takes tensors of one device, and all old or all new ones."""
    distinct = dict.fromkeys(kinds)
    for kind in distinct:
        alone = len(distinct) == 1
        yield kind, range(len(kinds)) if alone else [i for i, other in enumerate(kinds) if other == kind]


def _pick(tensors: list[Any], places: Sequence[int]) -> list[Any]:
    return tensors if len(places) == len(tensors) else [tensors[i] for i in places]


def _step_adam(base: Optimizer, group: dict[str, Any], entries: list[Entry], modulate: Modulate) -> None:
    params, grads, entries = _having_gradients(group, entries)
    if all(entries):
        exp_avgs, exp_avg_sqs = [e["exp_avg"] for e in entries], [e["exp_avg_sq"] for e in entries]
        steps = [e["step"] for e in entries]
    else:  # torch's own function creates the state of parameters that are new, and gathers
        lists: list[list[Tensor]] = [[] for _ in range(6)]
        base._init_group(group, *lists)
        params, grads, exp_avgs, exp_avg_sqs, _, steps = lists
    settings = AdamSettings(
        lr=float(group["lr"]),
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=float(group["weight_decay"]),
        decoupled=group["decoupled_weight_decay"],
        maximize=group["maximize"],
    )
    for _, places in _parts([parameter.device for parameter in params]):
        part = _pick(params, places)
        adamw_(
            part,
            _pick(grads, places),
            exp_avgs=_pick(exp_avgs, places),
            exp_avg_sqs=_pick(exp_avg_sqs, places),
            steps=_pick(steps, places),
            settings=settings,
            modulation=modulate(part),
        )


def _step_sgd(base: Optimizer, group: dict[str, Any], entries: list[Entry], modulate: Modulate) -> None:
    params, grads, entries = _having_gradients(group, entries)
    buffers = [e.get("momentum_buffer") for e in entries] if group["momentum"] != 0 else []
    settings = SGDSettings(
        lr=float(group["lr"]),
        momentum=group["momentum"],
        dampening=group["dampening"],
        weight_decay=float(group["weight_decay"]),
        nesterov=group["nesterov"],
        maximize=group["maximize"],
    )
    new = [buffer is None for buffer in buffers] or [False] * len(
        params
    )  # there are no buffers without momentum
    for (_, first), places in _parts([(p.device, n) for p, n in zip(params, new, strict=True)]):
        part = _pick(params, places)
        momenta = [torch.empty_like(p) for p in part] if first else _pick(buffers, places) if buffers else []
        sgd_(
            part,
            _pick(grads, places),
            momentum_buffers=momenta,
            settings=settings,
            modulation=modulate(part),
            first=first,
        )
        if first:
            for parameter, momentum in zip(part, momenta, strict=True):
                base.state[parameter]["momentum_buffer"] = momentum


_RULES = {AdamW: _step_adam, Adam: _step_adam, SGD: _step_sgd}
