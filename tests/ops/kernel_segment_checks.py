"""Checks of segment_gram and segment_combine_ on any device: see kernel_checks.py."""

from __future__ import annotations

import itertools

import torch
from kernel_inputs import SIZES, compare, guarded, mixed, products_of_norms
from operator_cases import Call, Case, combine, gram

import cggm_ops
from cggm_ops import reference
from tolerances import assert_elements


def check_gram(device: str, dtype: torch.dtype) -> None:
    """segment_gram: odd sizes, views, transposed tensors, sets with different strides, nearly opposed tensors."""
    for sets, sizes in ((1, SIZES), (2, SIZES), (3, SIZES), (5, (700, 8200))):
        case, guards = guarded(device, dtype, sizes)
        call = gram(case, sets)
        if sets == 3:
            call.read[1][:] = [tensor.contiguous() for tensor in call.read[1]]
            call.arguments[0][:] = itertools.chain(*call.read)
        found, wanted = compare(call, "gram", exact=False)
        assert_elements("gram", found, wanted, terms=products_of_norms(wanted))
        guards.check()
    near = torch.randn(5000, dtype=torch.float64)
    first, second = near.to(device, dtype), (-near).to(device, dtype)
    second[17] += 0.25
    found = cggm_ops.segment_gram([[first], [second]])[0]
    exact = (first.double() + second.double()).square().sum()  # the rest after cancellation
    assert_elements("gram", found.sum(), exact, terms=found.abs().sum())


def check_combine(device: str, dtype: torch.dtype) -> None:
    """segment_combine_: all layouts, weights with strides."""
    for sets, sizes in ((1, SIZES), (2, SIZES + SIZES), (4, SIZES)):
        case, guards = guarded(device, dtype, sizes)
        weights = torch.randn(sets, len(sizes), dtype=torch.float64).to(device).t()
        call = combine(case, sets, weights)
        if sets == 4:
            call.read[1][:] = [tensor.contiguous() for tensor in call.read[1]]
            call.arguments[1][:] = itertools.chain(*call.read[1:])
        compare_combination(call)
        guards.check()


def compare_combination(call: Call) -> None:
    """Compare with float64; the rounded terms add up to at most K · Σ_k |w_k g_k|."""
    into, others, weights = call.arguments
    rows = [[tensor.double().abs() for tensor in row] for row in (into, others)]
    reference.segment_combine_(*rows, weights.shape[1] * weights.abs())
    magnitudes = iter(rows[0])
    compare(call, "combination", terms=lambda _: next(magnitudes))


def check_many_segments(device: str, dtype: torch.dtype) -> None:
    """segment_gram and segment_combine_ with more segments than fit in one launch."""
    if dtype != torch.float32:
        return
    case = Case(tuple(index % 7 for index in range(1050)), device=device, draw=mixed())
    found, wanted = compare(gram(case), "gram", exact=False)
    assert_elements("gram", found, wanted, terms=products_of_norms(wanted))
    compare_combination(combine(case, weights=torch.randn(1050, 2, device=device)))
