"""The operators in `torch.ops.cggm_ops`: schemas, fakes, definitions and autograd, and how they are called.

The fakes check their arguments as the implementations do, except for shared memory: their tensors have none.

The schemas are here and not in C++, so that everything works without the compiled extension. It only adds
implementations for the dispatch keys CPU and CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cggm_ops import direct, reference
from cggm_ops.checks.modulation import check_backward, check_head, check_modulation, check_scale
from cggm_ops.checks.optimizers import check_adamw, check_sgd
from cggm_ops.checks.segments import check_combination, check_sets
from cggm_ops.checks.types import UNCLEAR, check_types

NAMESPACE = "cggm_ops"
# One call instead of a loop where torch has it; torch 2.6 does not.
_any_requires_grad = getattr(
    torch._C, "_any_requires_grad", lambda tensors: any(tensor.requires_grad for tensor in tensors)
)
DEFINITIONS: dict[str, Callable[..., Any]] = {}  # the reference implementation of each operator
_library = torch.library.Library(NAMESPACE, "DEF")


def _define(schema: str, default: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define one operator with its reference implementation and its fake; return the overload to call."""
    name = schema.split("(", 1)[0]
    DEFINITIONS[name] = default
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def serving(op: Any, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """Return `op`, or its definition for float64 on CUDA: no GPU kernel is built for float64."""
    if tensors and tensors[0].is_cuda and any(tensor.dtype is torch.float64 for tensor in tensors):
        return DEFINITIONS[op._opname]
    return op


def mutate(op: Any, name: str, tensors: Sequence[Tensor], *others: Any) -> Any:
    """Call an operator that changes its first argument; do the work of its autograd layer here, which costs less.

    Args:
        op: the operator's overload.
        name: what the user calls the first argument.
        tensors: the first argument.
        others: the other arguments.
    """
    if torch.compiler.is_compiling():
        return serving(op, tensors)(tensors, *others)
    try:
        return _mutate(op, name, tensors, *others)
    except UNCLEAR:
        check_types(op, (tensors, *others), name)
        raise


def _mutate(op: Any, name: str, tensors: Sequence[Tensor], *others: Any) -> Any:
    call = direct.function(op._opname) if op in (adamw_, sgd_) else None
    # The version first, in one statement: after an interrupt it says whether the kernel has run.
    if call is not None and not torch.autograd.graph.increment_version(tensors) and call(tensors, *others):
        return None
    return _change(serving(op, tensors), {name: tensors}, tensors, *others)


def _refuse_tangents(name: str, arguments: Iterable[Any]) -> None:
    """Refuse dual tensors: no operator here has a forward-mode derivative, and the tangent would be wrong."""
    if forward_ad._current_level < 0:
        return
    for argument in arguments:
        for tensor in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
                raise RuntimeError(
                    f"{name} has no forward-mode derivative, found a dual tensor: pass "
                    "torch.autograd.forward_ad.unpack_dual(tensor).primal, or call it outside of jvp"
                )


def _change(call: Callable[..., Any], changed: Mapping[str, Sequence[Tensor]], *arguments: Any) -> Any:
    """Refuse tensors that autograd follows, call, and increment the versions of the changed tensors."""
    _refuse_tangents("an operator that changes tensors in place", arguments)
    for name, tensors in changed.items():
        if torch.is_grad_enabled() and _any_requires_grad(tensors):
            raise RuntimeError(
                f"{name} holds a tensor that requires grad, which would change in place while autograd records: "
                "call this under torch.no_grad(), or pass .grad tensors"
            )
    everything = [tensor for tensors in changed.values() for tensor in tensors]
    with torch._C._AutoDispatchBelowADInplaceOrView():  # the version first, as in `mutate`
        return torch.autograd.graph.increment_version(everything) or call(*arguments)


def _guard_mutation(op: Any, mutated: tuple[int, ...] = (0,)) -> None:
    """Register an autograd layer that protects the arguments at the positions `mutated`."""
    names = [op._schema.arguments[position].name for position in mutated]

    def guarded(keyset: Any, *arguments: Any) -> Any:
        changed = {name: arguments[position] for name, position in zip(names, mutated, strict=True)}
        below = keyset & torch._C._after_ADInplaceOrView_keyset
        return _change(lambda *given: op.redispatch(below, *given), changed, *arguments)

    _library.impl(op._opname, guarded, "Autograd", with_keyset=True)


# batched_cosine ----------------------------------------------------------------------------------------------------


def _batched_cosine_fake(fusion: Tensor, unimodal: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    check_head(fusion, unimodal)
    cosines = fusion.new_empty(len(unimodal), dtype=reference.cosine_dtype(fusion))
    return cosines, fusion.new_empty(2 * len(unimodal) + 1, dtype=torch.float64)


def _batched_cosine_backward_fake(
    grad: Tensor, products: Tensor, fusion: Tensor, unimodal: Sequence[Tensor]
) -> Tensor:
    check_backward(grad, products, fusion, unimodal)
    return fusion.new_empty(fusion.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fusion, unimodal = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(fusion, output[1], *unimodal)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, list[None]]:
    fusion, products, *unimodal = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True needs operations that autograd can differentiate again
        products = reference.head_products(fusion, unimodal)
        return reference.batched_cosine_backward(grad, products, fusion, unimodal), [None] * len(unimodal)
    return batched_cosine_backward(grad, products, fusion, unimodal), [None] * len(unimodal)


batched_cosine = _define(
    "batched_cosine(Tensor fusion, Tensor[] unimodal) -> (Tensor cosines, Tensor products)",
    reference.batched_cosine,
    _batched_cosine_fake,
)
batched_cosine_backward = _define(
    "batched_cosine_backward(Tensor grad, Tensor products, Tensor fusion, Tensor[] unimodal) -> Tensor",
    reference.batched_cosine_backward,
    _batched_cosine_backward_fake,
)
torch.library.register_autograd(
    f"{NAMESPACE}::batched_cosine", _differentiate, setup_context=_save_for_backward, lib=_library
)


def _below_autograd(keyset: Any, *arguments: Any) -> Any:
    _refuse_tangents("torch.ops.cggm_ops.batched_cosine", arguments)
    return batched_cosine.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)


_library.impl("batched_cosine", _below_autograd, "ADInplaceOrView", with_keyset=True)

# scale_ ------------------------------------------------------------------------------------------------------------


def _scale_fake(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
    check_scale(grads, owner, coefficients)
    return coefficients.new_empty(coefficients.shape[0] + 1, dtype=torch.float64)


scale_ = _define(
    "scale_(Tensor(a!)[] grads, int[] owner, Tensor coefficients) -> Tensor", reference.scale_, _scale_fake
)
_guard_mutation(scale_)

# modulate_ ---------------------------------------------------------------------------------------------------------


def _modulate_fake(
    grads: Sequence[Tensor],
    owner: Sequence[int],
    coefficients: Tensor,
    fusion: Tensor,
    unimodal: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    check_modulation(grads, owner, coefficients, fusion, unimodal)
    return _batched_cosine_fake(fusion, unimodal)[0], _scale_fake(grads, owner, coefficients)


modulate_ = _define(
    "modulate_(Tensor(a!)[] grads, int[] owner, Tensor coefficients, Tensor fusion, Tensor[] unimodal)"
    " -> (Tensor cosines, Tensor sq_norms)",
    reference.modulate_,
    _modulate_fake,
)
_guard_mutation(modulate_)

# segment_gram ------------------------------------------------------------------------------------------------------


def _segment_gram_fake(tensors: Sequence[Tensor], sets: int) -> Tensor:
    check_sets(tensors, sets)
    return tensors[0].new_empty((len(tensors) // sets, sets, sets), dtype=torch.float64)


segment_gram = _define(
    # K sets of S tensors, one set after the other -> [S, K, K]
    "segment_gram(Tensor[] tensors, int sets) -> Tensor",
    reference.segment_gram,
    _segment_gram_fake,
)

# segment_combine_ --------------------------------------------------------------------------------------------------


segment_combine_ = _define(
    # set 0, and the K - 1 others one after the other; weights [S, K]
    "segment_combine_(Tensor(a!)[] into, Tensor[] others, Tensor weights) -> ()",
    reference.segment_combine_,
    check_combination,
)
_guard_mutation(segment_combine_)

# adamw_ and sgd_ ---------------------------------------------------------------------------------------------------

_MODULATION = "int[] owner, Tensor? grad_scale, Tensor? update_scale"

adamw_ = _define(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"Tensor(d!)[] steps, {_MODULATION}, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "bool decoupled, bool maximize) -> ()",
    reference.adamw_,
    check_adamw,
)
_guard_mutation(adamw_, (0, 2, 3, 4))

sgd_ = _define(
    "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
    f"{_MODULATION}, float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
    "bool first) -> ()",
    reference.sgd_,
    check_sgd,
)
_guard_mutation(sgd_, (0, 2))
