"""An optimizer that wraps another one and is accepted wherever torch accepts an optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import optim
from torch.optim import Adagrad, Optimizer

from ..arguments import check_range
from ..torch_private import HOOK_TABLES, is_watched
from .checkpoint_checks import check_containers
from .fused import FusedStep

# Optimizers that cannot train the classifiers' parameters, and what to do instead.
_REFUSED = {
    "LBFGS": "it evaluates the loss many times a step and takes one parameter group only; use SGD or AdamW",
    "Muon": "it takes matrices only, not the classifiers' biases; wrap the optimizer of the other parameters "
    "(apply='feature' or 'gradient') and step Muon beside it, or take a Muon with an auxiliary Adam",
    "SparseAdam": "it takes sparse gradients only, not the classifiers' dense ones; wrap the optimizer of the other "
    "parameters (apply='feature' or 'gradient') and step SparseAdam beside it",
}


class OptimizerWrapper(Optimizer):
    """A `torch.optim.Optimizer` that shares the groups, state and defaults of `base`.

    They are properties, because copies would go stale as soon as `load_state_dict` replaces those of `base`. Nothing
    else is delegated: an attribute such as `_step_supports_amp_scaling` describes only the step of `base` itself.

    Args:
        base: the optimizer to wrap.

    Raises:
        TypeError: `base` is not an optimizer, is already wrapped, or cannot train the unimodal classifiers.
    """

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer) or isinstance(base, OptimizerWrapper):
            raise TypeError(f"optimizer must be a plain torch.optim.Optimizer, got {type(base).__name__}")
        if any(cls.__module__.startswith("accelerate.") for cls in type(base).__mro__):
            raise TypeError(
                "optimizer was prepared by accelerate, which decides when to step it: make the wrapper around the "
                "plain optimizer, then pass the wrapper to accelerator.prepare()"
            )
        for refused, why in _REFUSED.items():
            if isinstance(base, getattr(optim, refused, ())):  # older versions of torch have no Muon
                raise TypeError(f"optimizer cannot be {refused}: {why}")
        self.base = base
        self.fused_step = FusedStep(base)
        self._max_norm: float | None = None
        for table in HOOK_TABLES:
            setattr(self, table, OrderedDict())
        self._warned_capturable_if_run_uncaptured = True
        self._patch_step_function()  # step hooks and the profiler's label

    @staticmethod
    def profile_hook_step(step: Callable[..., Any]) -> Callable[..., Any]:
        """Add torch's hooks and profiler label to `step`, used only while a hook or a profiler is active."""
        hooked = Optimizer.profile_hook_step(step)

        @wraps(step)
        def stepped(self: OptimizerWrapper, *arguments: Any, **named: Any) -> Any:
            return (hooked if is_watched(self) else step)(self, *arguments, **named)

        return stepped

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's parameter groups."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.base.defaults

    @property
    def max_norm(self) -> float | None:
        """The norm to which `step()` clips the model's gradients after modulation; None, the default, disables it.

        As in `clip_grad_norm_`, it limits the norm of all gradients together. Gradients of the unimodal classifiers do
        not count. The training loop may set it at any time. Checkpoints do not save it.
        """
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        if value is not None:
            check_range("max_norm", value, 0.0)
        if value == 0:
            raise ValueError("max_norm must be a positive number or None, got 0")
        self._max_norm = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"param_group must be a dictionary with the field 'params', got {param_group!r}")
        self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler replaces `step` on the instance with a closure over this object; a copy must not inherit it.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict plus the entries from `_add_to_state_dict`."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self.base.state_dict()
        self._add_to_state_dict(state_dict)
        for hook in self._optimizer_state_dict_post_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict from `state_dict()`. If loading fails, nothing has changed.

        Args:
            state_dict: not mutated. NaN is loaded like any other number.

        Raises:
            TypeError, ValueError: a field is missing or does not fit; the message names the field.
        """
        check_containers(state_dict)
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        self._load(state_dict)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _add_to_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    def _load(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


def complete_state(optimizer: Optimizer) -> None:
    """Create Adagrad's state for parameters added later; torch 2.11 does not, and then fails in `step()`."""
    if type(optimizer) is not Adagrad:
        return
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    new = [p for p in parameters if not optimizer.state.get(p)]
    if new:
        optimizer.state.update(Adagrad(new, **optimizer.defaults).state)
