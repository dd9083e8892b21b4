"""Schemas, fakes, default implementations and autograd of the operators in `torch.ops.cggm_ops`.

The schema is defined here and not in C++, so that everything works without the compiled extension, which only adds
implementations for the dispatch keys CPU and CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cggm_ops import reference

NAMESPACE = "cggm_ops"
_library = torch.library.Library(NAMESPACE, "DEF")


def _define(schema: str, default: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define one operator with its default implementation and its fake; return the overload to call."""
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def require_no_grad(grads: Sequence[Tensor]) -> None:
    """Refuse to change tensors that autograd follows."""
    if torch.is_grad_enabled() and any(grad.requires_grad for grad in grads):
        raise RuntimeError(
            "grads holds a tensor that requires grad, and it would be changed in place while autograd records: call "
            "this under torch.no_grad(), or pass .grad tensors"
        )


def _guard_mutation(op: Any) -> None:
    """Refuse tensors that autograd follows, and count the change in their versions."""

    def guarded(keyset: Any, grads: Sequence[Tensor], *rest: Any) -> Any:
        require_no_grad(grads)
        torch.autograd.graph.increment_version(grads)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, grads, *rest)

    _library.impl(op._opname, guarded, "Autograd", with_keyset=True)


# batched_cosine ----------------------------------------------------------------------------------------------------


def _batched_cosine_fake(fusion: Tensor, unimodal: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    cosines = fusion.new_empty(len(unimodal), dtype=reference.cosine_dtype(fusion))
    return cosines, fusion.new_empty(2 * len(unimodal) + 1, dtype=torch.float64)


def _batched_cosine_backward_fake(
    grad: Tensor, products: Tensor, fusion: Tensor, unimodal: Sequence[Tensor]
) -> Tensor:
    return fusion.new_empty(fusion.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fusion, unimodal = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(fusion, output[1], *unimodal)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, list[None]]:
    fusion, products, *unimodal = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain operations, which autograd follows once more
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

# scale_ ------------------------------------------------------------------------------------------------------------


def _scale_fake(grads: Sequence[Tensor], owner: Sequence[int], coefficients: Tensor) -> Tensor:
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
    return _batched_cosine_fake(fusion, unimodal)[0], _scale_fake(grads, owner, coefficients)


modulate_ = _define(
    "modulate_(Tensor(a!)[] grads, int[] owner, Tensor coefficients, Tensor fusion, Tensor[] unimodal)"
    " -> (Tensor cosines, Tensor sq_norms)",
    reference.modulate_,
    _modulate_fake,
)
_guard_mutation(modulate_)
