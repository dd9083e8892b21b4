"""Every private name of torch that the wrapper relies on, and why; `missing()` says which of them a torch lacks.

They are kept here so that a new version of torch breaks one file, and breaks it in a test that names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.optim import Adam, Optimizer
from torch.optim import optimizer as torch_optimizer

#: Keeps a function out of a compiled training step, as torch's own optimizers do. `torch.compiler.disable` does the
#: same, but imports the compiler, which takes seconds.
disable_dynamo = torch._disable_dynamo

#: One launch for a whole list of tensors, which has no public name.
foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_sub_ = torch._foreach_sub_
foreach_zero_ = torch._foreach_zero_

#: The hooks that repack what autograd saves; torch 2.6 has no such function.
_top_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)

#: The tables of hooks that `Optimizer.__init__` makes and other tools look for; the wrapper does not call that.
HOOK_TABLES = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def missing() -> list[str]:
    """The names used here that this version of torch lacks.

    >>> missing()
    []
    """
    foreach = (
        "_foreach_add_",
        "_foreach_copy_",
        "_foreach_mul_",
        "_foreach_norm",
        "_foreach_sub_",
        "_foreach_zero_",
    )
    used = (
        (torch, ("_disable_dynamo", *foreach)),
        (torch._C, ("_current_graph_task_id",)),
        (torch._C._autograd, ("_get_current_graph_task_keep_graph",)),
        (torch.autograd.Variable, ("_execution_engine",)),
        (profiler, ("_is_profiler_enabled",)),
        (torch_optimizer, ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")),
        (Optimizer, ("_patch_step_function", "profile_hook_step")),
        (Adam, ("_init_group",)),
        (
            nn.Module(),
            (
                "_modules",
                "_parameters",
                "_forward_hooks",
                "_forward_hooks_with_kwargs",
                "_forward_pre_hooks",
                "_forward_pre_hooks_with_kwargs",
            ),
        ),
        (nn.parallel.DistributedDataParallel, ("_get_active_ddp_module",)),
        (Tensor, ("_values",)),
        (Adam([nn.Parameter(torch.empty(0))]), HOOK_TABLES),
    )
    return [name for owner, names in used for name in names if not hasattr(owner, name)]


def is_watched(optimizer: Optimizer) -> bool:
    """Whether anybody sees an optimizer's step: a hook or the profiler, whose label alone takes as long as a kernel."""
    return bool(
        profiler._is_profiler_enabled
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def has_pre_hooks(optimizer: Optimizer) -> bool:
    """Whether a hook runs before the optimizer's step."""
    return bool(optimizer._optimizer_step_pre_hooks or torch_optimizer._global_optimizer_pre_hooks)


def make_adam_state(optimizer: Optimizer) -> None:
    """Have Adam or AdamW make the state of its parameters that are new, by torch's own function."""
    arguments = signature(optimizer._init_group).parameters  # AdamW of torch 2.6 has one more, `amsgrad`
    for group in optimizer.param_groups:
        optimizer._init_group(group, *([] for _ in range(len(arguments) - 1)))


def backward_id() -> int:
    """A number for the backward pass that calls this; -1 outside of one."""
    return torch._C._current_graph_task_id()


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as activation checkpointing does when it repeats a forward pass."""
    return not torch.compiler.is_compiling() and backward_id() != -1


def at_end_of_backward(function: Callable[[], Any]) -> None:
    """Call the function at the end of the backward pass that calls this, after what is already queued in it."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def graph_is_kept() -> bool:
    """Whether the backward pass that calls this was asked to retain its graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def saved_tensors_are_exchanged() -> bool:
    """Whether something repacks what autograd saves, as activation checkpointing does."""
    if torch.compiler.is_compiling():
        return True
    if _top_saved_tensors_hooks is not None:
        return bool(_top_saved_tensors_hooks(False))
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(
            "never shown"
        ):  # refuses while a hook is active
            return False
    except RuntimeError:
        return True


def active_reducer() -> nn.Module | None:
    """The DistributedDataParallel whose forward pass is running, if any."""
    if torch.compiler.is_compiling():
        return None
    return nn.parallel.DistributedDataParallel._get_active_ddp_module()


def reduced_parameters(reducer: nn.Module) -> Sequence[Tensor]:
    """The parameters that a DistributedDataParallel was made with."""
    return reducer._module_parameters


def uncompiled(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile`."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    return model


def child(module: nn.Module, name: str) -> nn.Module:
    """`getattr(module, name)` for a submodule, in a fifth of the time."""
    found = module._modules.get(name)  # None behind torch.compile's wrapper, which passes names on
    return getattr(module, name) if found is None else found


def own_parameter(module: nn.Module, name: str) -> Tensor | None:
    """The module's own parameter of this name, or None, in a tenth of the time that `named_parameters` takes."""
    return module._parameters.get(name)


def remove_hooks(model: nn.Module, unwanted: Callable[[Any], bool]) -> None:
    """Remove the forward hooks and forward pre-hooks that are unwanted, without their handles."""
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            table = getattr(module, name)
            for number in [number for number, hook in table.items() if unwanted(hook)]:
                del table[number]
                getattr(module, f"{name}_with_kwargs").pop(number, None)


def first_parameter(module: nn.Module) -> Tensor | None:
    """The first of `module.parameters()`, or None, in a tenth of the time."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    return next((p for child in module._modules.values() if (p := first_parameter(child)) is not None), None)
