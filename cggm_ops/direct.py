"""The short way into the compiled kernels, for plain tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import forward_ad

#: Compiled functions by the name of their operator; they return whether they served the call. See csrc/module.cpp.
FUNCTIONS: dict[str, Callable[..., bool]] = {}


def function(name: str) -> Callable[..., bool] | None:
    """Return the compiled function of an operator if nothing but its kernel could act on a call now, else None.

    The dispatcher takes most of the time of a call with many tensors. It is needed for autograd, transforms, modes,
    tracers and profilers.
    """
    found = FUNCTIONS.get(name)
    if (
        found is None
        or torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    ):
        return None
    return found


def is_transformed() -> bool:
    """Tell whether forward-mode differentiation or a transform of torch.func is active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
