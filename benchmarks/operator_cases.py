"""The registry of operator calls: inputs, our call, the definition, what a user would otherwise write, bytes moved.

The benchmarks, the GPU program and the checks of the kernels (tests/ops/kernel_checks.py) take their calls from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from harness import Alternative
from operator_calls import Call, Case
from torch import Tensor
from torch.nn import functional as F
from torch.optim.sgd import sgd as foreach_sgd

import cggm_ops
from cggm_ops import AdamSettings, Modulation, SGDSettings

HEAD = 65_536  # elements of a head gradient beside the encoders' gradients
ADAM = AdamSettings(lr=1e-4, weight_decay=0.01)
SGD = SGDSettings(lr=1e-4)


def _norm_loop(grads: list[Tensor], factors: list[float]) -> list[Tensor]:
    """Scale parameter by parameter, as released scripts do, with the norms that clipping needs."""
    return [grad.mul_(factor).norm() for grad, factor in zip(grads, factors, strict=True)]


def _norm_foreach(grads: list[Tensor], factors: list[float]) -> tuple[Tensor, ...]:
    torch._foreach_mul_(grads, factors)
    return torch._foreach_norm(grads)


def _cosines(fusion: Tensor, unimodal: Sequence[Tensor]) -> list[Tensor]:
    return [F.cosine_similarity(fusion, row, dim=0) for row in unimodal]


def _cosines_by_dot(fusion: Tensor, unimodal: Sequence[Tensor]) -> list[Tensor]:
    """Compute the norm of fusion only once."""
    norm = torch.dot(fusion, fusion)
    return [torch.dot(fusion, row) / (norm * torch.dot(row, row)).sqrt() for row in unimodal]


def _factors(owner: Sequence[int], coefficients: Tensor) -> list[float]:
    """Return the coefficient of each tensor as a Python number."""
    numbers = [*coefficients.tolist(), 1.0]
    return [numbers[modality] for modality in owner]


def scale(case: Case, coefficients: Tensor | None = None) -> Call:
    """Make a call of scale_."""
    (grads,) = case.lists(1)
    owner = case.owner()
    coefficients = case.coefficients() if coefficients is None else coefficients
    factors = _factors(owner, coefficients)
    others = {
        "loop": lambda: _norm_loop(grads, factors),
        "foreach mul + norm": lambda: _norm_foreach(grads, factors),
        "foreach mul alone": lambda: torch._foreach_mul_(grads, factors),
    }
    ours = lambda: cggm_ops.scale_(grads, owner, coefficients)  # noqa: E731
    return Call("scale_", (grads, owner, coefficients), ours, others, [grads], [grads])


def modulate(case: Case, head: int = HEAD, head_dtype: torch.dtype | None = None) -> Call:
    """Make a call of modulate_ with head gradients of `head` elements."""
    (grads,) = case.lists(1)
    owner, coefficients = case.owner(), case.coefficients()
    factors = _factors(owner, coefficients)
    fusion, *unimodal = replace(case, dtype=head_dtype or case.dtype).head(head)
    arguments = (grads, owner, coefficients, fusion, unimodal)
    others = {
        "loop + cosines": lambda: (_norm_loop(grads, factors), _cosines(fusion, unimodal)),
        "foreach + cosines": lambda: (_norm_foreach(grads, factors), _cosines(fusion, unimodal)),
        "scale_ + batched_cosine": lambda: (
            cggm_ops.scale_(grads, owner, coefficients),
            cggm_ops.batched_cosine(fusion, unimodal),
        ),
    }
    ours = lambda: cggm_ops.modulate_(*arguments)  # noqa: E731
    return Call("modulate_", arguments, ours, others, [grads], [grads, [fusion, *unimodal]])


def cosine(case: Case) -> Call:
    """Make a call of batched_cosine."""
    fusion, *unimodal = case.head(case.sizes[0])
    others = {
        "F.cosine_similarity": lambda: _cosines(fusion, unimodal),
        "torch.dot": lambda: _cosines_by_dot(fusion, unimodal),
    }
    ours = lambda: cggm_ops.batched_cosine(fusion, unimodal)  # noqa: E731
    return Call("batched_cosine", (fusion, unimodal), ours, others, read=[[fusion, *unimodal]])


def gram(case: Case, count: int = 2) -> Call:
    """Make a call of segment_gram."""
    sets = case.lists(count)

    def dots() -> list[Tensor]:
        """Return all K² dot products, as MMPareto's released script computes them."""
        return [torch.dot(a, b) for one in sets for other in sets for a, b in zip(one, other, strict=True)]

    ours = lambda: cggm_ops.segment_gram(sets)  # noqa: E731
    return Call("segment_gram", ([*itertools.chain(*sets)], count), ours, {"torch.dot": dots}, read=sets)


def combine(case: Case, count: int = 2, weights: Tensor | None = None) -> Call:
    """Make a call of segment_combine_; the alternatives work with two sets."""
    sets = case.lists(count)
    if weights is None:
        weights = torch.tensor([[0.6, 0.4]], device=case.device).repeat(len(case.sizes), 1)
    rows = weights.tolist()

    def loop() -> None:
        for first, second, (a, b) in zip(*sets, rows, strict=True):
            first.mul_(a).add_(second, alpha=b)

    def foreach() -> None:
        torch._foreach_mul_(sets[0], [a for a, _ in rows])
        torch._foreach_add_(sets[0], torch._foreach_mul(sets[1], [b for _, b in rows]))

    ours = lambda: cggm_ops.segment_combine_(sets, weights)  # noqa: E731
    arguments = (sets[0], [*itertools.chain(*sets[1:])], weights)
    return Call("segment_combine_", arguments, ours, {"loop": loop, "foreach": foreach}, sets[:1], sets)


def adamw(
    case: Case,
    settings: AdamSettings = ADAM,
    modulation: Modulation | None = None,
    steps: list[Tensor] | None = None,
) -> Call:
    """Make a call of adamw_ with modulation; the alternatives are torch's fused AdamW without and after scaling."""
    params, grads, exp_avgs, exp_avg_sqs = case.lists(4)
    for tensor in exp_avg_sqs:
        tensor.abs_()
    if steps is None:  # where fused AdamW keeps them
        steps = [torch.full((), 10.0, device=case.device) for _ in params]
    modulation = case.modulation() if modulation is None else modulation
    s = settings
    numbers = {
        "lr": s.lr,
        "beta1": s.betas[0],
        "beta2": s.betas[1],
        "eps": s.eps,
        "weight_decay": s.weight_decay,
    }
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}

    def fused() -> None:
        torch._foreach_add_(steps, 1)
        lists = (params, grads, exp_avgs, exp_avg_sqs, [], steps)
        torch._fused_adamw_(*lists, amsgrad=False, maximize=s.maximize, **numbers)

    def ours(modulation: Modulation = modulation) -> None:
        cggm_ops.adamw_(params, grads, **states, settings=settings, modulation=modulation)

    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    arguments = (*lists, *_scales(modulation), *numbers.values(), s.decoupled, s.maximize)
    others = {
        "ours without modulation": lambda: ours(Modulation()),
        **_scaled_first(case, grads, "fused", fused),
    }
    return Call("adamw_", arguments, ours, others, [params, exp_avgs, exp_avg_sqs], lists[:4])


def sgd(
    case: Case,
    settings: SGDSettings = SGD,
    modulation: Modulation | None = None,
    first: bool = False,
) -> Call:
    """Make a call of sgd_ with modulation; the alternatives are torch's SGD without and after scaling."""
    params, grads, *rest = case.lists(3 if settings.momentum else 2)
    buffers = rest[0] if settings.momentum else []
    modulation = case.modulation() if modulation is None else modulation
    s = settings
    numbers = {"lr": s.lr, "momentum": s.momentum, "dampening": s.dampening, "weight_decay": s.weight_decay}
    flags = {"nesterov": s.nesterov, "maximize": s.maximize}
    # The fused kernel of torch 2.12 and 2.13 does not change parameters in half precision (pytorch issue 191763).
    kind = "fused" if case.dtype == torch.float32 else "foreach"

    def plain() -> None:
        if kind == "fused":
            torch._fused_sgd_(params, grads, buffers, is_first_step=first, **numbers, **flags)
        else:
            foreach_sgd(params, grads, list(buffers), foreach=True, **numbers, **flags)

    def ours() -> None:
        options = {"settings": settings, "modulation": modulation, "first": first}
        cggm_ops.sgd_(params, grads, momentum_buffers=buffers, **options)

    arguments = (params, grads, buffers, *_scales(modulation), *numbers.values(), *flags.values(), first)
    others = _scaled_first(case, grads, kind, plain)
    return Call("sgd_", arguments, ours, others, [params, buffers], [params, grads, buffers])


def _scales(modulation: Modulation) -> tuple[list[int], Tensor | None, Tensor | None]:
    return list(modulation.owner), modulation.grad_scale, modulation.update_scale


def _scaled_first(case: Case, grads: list[Tensor], kind: str, step: Alternative) -> dict[str, Alternative]:
    """Return a step without modulation, and after scaling the gradients by foreach and in a loop."""
    owner, coefficients = case.owner(), case.coefficients()
    factors = _factors(owner, coefficients)

    def loop() -> None:
        """Scale tensor by tensor with coefficients read on the host, as released scripts do."""
        for grad, modality in zip(grads, owner, strict=True):
            grad *= coefficients[modality].item()
        step()

    return {
        f"{kind} without modulation": step,
        f"foreach mul + {kind}": lambda: (torch._foreach_mul_(grads, factors), step()),
        f"loop + {kind}": loop,
    }


@dataclass(frozen=True)
class Operator:
    """A function that makes a call, and the number of lists of tensors that it draws for M modalities."""

    make: Callable[..., Call]
    lists: Callable[[int], int] = lambda modalities: 1


OPERATORS: dict[str, Operator] = {
    "scale_": Operator(scale),
    "modulate_": Operator(modulate),
    "batched_cosine": Operator(cosine, lambda modalities: modalities + 1),
    "segment_gram": Operator(gram, lambda modalities: 2),
    "segment_combine_": Operator(combine, lambda modalities: 2),
    "adamw_": Operator(adamw, lambda modalities: 4),
    "sgd_": Operator(sgd, lambda modalities: 2),
    "sgd_ with momentum": Operator(
        lambda case: sgd(case, SGDSettings(lr=1e-4, momentum=0.9)), lambda modalities: 3
    ),
}
