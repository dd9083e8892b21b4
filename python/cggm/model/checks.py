"""What a model, its encoders and its head must be like; refused before anything is attached."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from ..policies.plan import Plan
from ..torch_private import own_parameter, remove_hooks
from ..user_warning import warn_user
from .classifiers import ATTACHED
from .lookup import unwrap


def check_model(model: nn.Module) -> nn.Module:
    """The user's own module.

    Raises:
        TypeError: not a module, or one that cannot carry attached classifiers.
        ValueError: it carries some already, or its parameters have no shapes yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    if isinstance(model, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise TypeError(
            f"model is an {type(model).__name__}, whose own children would include the attached classifiers; "
            "make it an attribute of a module of your own"
        )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"model has parameters without a shape, {lazy[:4]}, of lazy modules: run it on one batch under "
            "torch.no_grad() before wrapping it"
        )
    if hasattr(model, ATTACHED):
        gc.collect()  # a former wrapper that nobody holds any more
    if hasattr(model, ATTACHED) and not getattr(model, ATTACHED).owned:  # its wrapper is gone
        delattr(model, ATTACHED)
        remove_hooks(model, lambda hook: not getattr(getattr(hook, "__self__", hook), "owned", True))
    if hasattr(model, ATTACHED):
        raise ValueError(f"model already carries {ATTACHED}: call detach() on its former wrapper first")
    return model


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer of another model.

    Raises:
        ValueError: it has none of the model's parameters.
    """
    if {p for group in optimizer.param_groups for p in group["params"]}.isdisjoint(model.parameters()):
        raise ValueError(
            "optimizer has none of the model's parameters: make it from model.parameters(), after whatever replaces "
            "them, as fully_shard() does"
        )


def check_hooks(parts: Mapping[str, Sequence[nn.Module]]) -> None:
    """Refuse encoders whose outputs no hook can see.

    Args:
        parts: modality -> the modules that its encoder is made of.

    Raises:
        TypeError: a scripted one.
    """
    for name, modules in parts.items():
        if any(isinstance(module, torch.jit.RecursiveScriptModule) for module in modules):
            raise TypeError(
                f"encoders[{name!r}] is a scripted module, which takes no hooks: put it into a module of your own, "
                "whose forward calls it, use torch.jit.trace, or leave the module as it is and use torch.compile"
            )


def check_head_apart(paths: Mapping[str, Sequence[str]], head_path: str | None) -> None:
    """Refuse a head inside an encoder.

    Args:
        paths: modality -> the names of the modules that its encoder is made of.
        head_path: the name of the head, or None.
    """
    for path, name in [(path, name) for name, parts in paths.items() for path in parts]:
        if head_path is not None and f"{head_path}.".startswith(f"{path}."):
            raise ValueError(
                f"head: {head_path!r} belongs to encoder {name!r} ({path!r}), but it has to come after the fusion: "
                "name the model's output layer, and as encoders only what comes before the fusion"
            )


def stored_weight(head: nn.Module) -> Tensor | None:
    """The head's weight, or the largest parameter behind it: reading a computed weight computes it anew.

    None for a head without a weight.
    """
    weight = own_parameter(head, "weight")
    if weight is not None:
        return weight
    computed = parametrize.is_parametrized(head, "weight")
    behind = head.parametrizations.weight if computed else head
    return max(behind.parameters(recurse=False), key=Tensor.numel, default=None)


def _head_user(plan: Plan) -> str | None:
    """What needs the model's head, in words: a direction or a role; None where nothing does."""
    if plan.direction is not None:
        return f"{type(plan.coefficients).__name__}(lam > 0) turns the head's gradient"
    if plan.reads("head") is not None:
        return f"{type(plan.reads('head')).__name__}(split_head=True) splits the head"
    again = plan.reads("responses") or plan.policy.objective
    return None if again is None else f"{type(again).__name__}() runs the fusion again, up to the head"


def check_head(plan: Plan, head: nn.Module | None, path: str | None) -> None:
    """Refuse a missing head that the policy needs, and a direction for a head without a weight of its own.

    Args:
        plan: whether anything needs the head.
        head: the head, or None.
        path: its name.
    """
    if head is None:
        user = _head_user(plan)
        if user is not None:
            raise ValueError(
                f"head: {user}, and head is None: pass the fusion's output layer, head='name', or a policy "
                "that needs none, as NormEqualization() or CGGM(lam=0)"
            )
        return
    if plan.direction is None:
        return
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise ValueError(
            f"head: {path!r} is a {type(head).__name__} without a weight matrix, whose gradient "
            f"{type(plan.coefficients).__name__}(lam > 0) would turn; name the fusion's output layer (an nn.Linear, "
            "say), not the block around it"
        )
    if own_parameter(head, "weight") is None:
        raise ValueError(
            f"head: the weight of {path!r} is computed from other parameters (weight norm, spectral norm), so that its "
            "gradient cannot be turned: pass CGGM(lam=0), or a head with a weight of its own"
        )
    if not weight.requires_grad:
        warn_user(
            f"head: the weight of {path!r} is frozen, so that {type(plan.coefficients).__name__}(lam > 0) has no "
            "gradient to turn; its coefficients act all the same"
        )
