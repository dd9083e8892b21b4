"""Checks every kernel against the reference on one device: `python kernel_checks.py --device cuda --backend compiled`.

A program and not a test, because it runs in several places: on a GPU (`make gpu`), under the interpreter of Triton,
and with the CUDA sources built for the host. Inputs are random and fresh; memory for results is poisoned; sizes are
odd; some tensors are views whose neighbours in memory must stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from kernel_grid_checks import GRID_CHECKS  # noqa: E402
from kernel_inputs import (  # noqa: E402
    DTYPES,
    SIZES,
    Guarded,
    assert_norms,
    combine_exactly,
    copies,
    poison,
    products_of_norms,
)
from kernel_optimizer_checks import check_adamw, check_many_params, check_sgd  # noqa: E402

import cggm_ops  # noqa: E402
from cggm_ops import reference  # noqa: E402
from tolerances import assert_elements  # noqa: E402


def check_scale(device: str, dtype: torch.dtype) -> None:
    """scale_: views of all alignments, a modality without tensors, unscaled tensors, a coefficient of one."""
    for coefficient_dtype, stride in itertools.product((torch.float32, torch.float64), (1, 2)):
        guarded = Guarded(SIZES + SIZES[::-1], dtype, device)
        owner = [(index * 5) % 6 - 1 for index in range(len(guarded.tensors))]
        values = torch.tensor([0.37, 1.0, -1.9, 0.0, 2.5, 3.0], dtype=coefficient_dtype)
        coefficients = values.repeat_interleave(stride).to(device)[::stride]
        expected = copies(guarded.tensors)
        reference.scale_(expected, owner, coefficients)
        poison(device)
        norms = cggm_ops.scale_(guarded.tensors, owner, coefficients)
        for found, wanted in zip(guarded.tensors, expected, strict=True):
            assert_elements("scaled gradient", found, wanted)
        guarded.check()
        assert_norms(norms, guarded.tensors, owner)


def check_many_gradients(device: str, dtype: torch.dtype) -> None:
    """scale_ over more tensors than one launch takes, of all dtypes, and again for the same bits."""
    if dtype != torch.float32:
        return
    tensors = [torch.randn(5 + index % 97, device=device).to(DTYPES[index % 3]) for index in range(1100)]
    again = copies(tensors)
    owner = [index % 4 - 1 for index in range(len(tensors))]
    coefficients = torch.tensor([0.5, 1.7, -0.3], device=device)
    expected = copies(tensors)
    reference.scale_(expected, owner, coefficients)
    norms = cggm_ops.scale_(tensors, owner, coefficients)
    for found, wanted in zip(tensors, expected, strict=True):
        assert_elements("scaled gradient", found, wanted)
    assert_norms(norms, tensors, owner)
    poison(device)
    assert torch.equal(norms, cggm_ops.scale_(again, owner, coefficients)), "two runs differ"


def check_special_values(device: str, dtype: torch.dtype) -> None:
    """NaN, infinities and a factor of one: bits stay; an infinite coefficient does not leak out of padding."""
    grad = torch.randn(1003, device=device).to(dtype)
    grad[5], grad[7] = float("nan"), float("inf")
    before = grad.clone()
    cggm_ops.scale_([grad], [0], torch.ones(1, device=device))
    bits = {4: torch.int32, 2: torch.int16}[grad.element_size()]
    assert torch.equal(grad.view(bits), before.view(bits)), "a coefficient of one changed bits"
    grad = torch.ones(1003, device=device).to(dtype)
    norms = cggm_ops.scale_([grad], [0], torch.full((1,), float("inf"), device=device))
    assert norms[0] == float("inf"), "an infinite coefficient leaked"
    assert cggm_ops.scale_([], [], torch.ones(2, device=device)).tolist() == [0, 0, 0], "no tensors at all"


def check_cosine(device: str, dtype: torch.dtype) -> None:
    """batched_cosine and its backward: odd sizes, unaligned rows, zero norms, tiny and huge values."""
    for size, modalities in ((1, 1), (33, 3), (4096, 2), (3 * 4096 + 1, 5), (517, 0), (2048, 17)):
        guarded = Guarded((size,) * (modalities + 1), dtype, device)
        fusion, *unimodal = [tensor.reshape(-1) for tensor in guarded.tensors]
        if modalities > 2:
            unimodal[1] = torch.zeros_like(fusion)
            unimodal[2] = fusion * -1
        compare_cosine(fusion, unimodal)
        guarded.check()
    for factor in (1e-30, 1e30) if dtype in (torch.float32, torch.bfloat16) else ():
        rows = [torch.randn(700, device=device).to(dtype) * factor for _ in range(3)]
        compare_cosine(rows[0], rows[1:])
    fusion = torch.randn(700, device=device).to(dtype)
    broken = fusion.clone()
    broken[3] = float("nan")
    cosines = cggm_ops.batched_cosine(fusion, [broken, fusion])
    assert cosines.isnan().tolist() == [True, False], "NaN must stay in its own row"


def compare_cosine(fusion: Tensor, unimodal: list[Tensor]) -> None:
    """One call against float64."""
    fusion = fusion.detach().requires_grad_()
    poison(fusion.device.type)
    cosines = cggm_ops.batched_cosine(fusion, unimodal)
    expected, _ = reference.batched_cosine(fusion.detach(), unimodal)
    assert_elements("cosine", cosines, expected, terms=1.0)
    upstream = torch.randn_like(cosines)
    poison(fusion.device.type)
    cosines.backward(upstream)
    exact = reference.head_products(fusion.detach(), unimodal)
    wanted = reference.batched_cosine_backward(
        upstream.double(), exact, fusion.detach().double(), [row.double() for row in unimodal]
    )
    norm = fusion.detach().double().norm().clamp_min(1e-300)
    assert_elements("cosine gradient", fusion.grad, wanted, terms=upstream.double().abs().sum() / norm)


def check_modulate(device: str, dtype: torch.dtype) -> None:
    """modulate_: what scale_ and batched_cosine do, head gradients in another dtype, or among the gradients."""
    for head_dtype in (dtype, torch.float32):
        guarded = Guarded(SIZES + (5,) * 64, dtype, device)  # more than the small table holds
        owner = [index % 4 - 1 for index in range(len(guarded.tensors))]
        coefficients = torch.tensor([0.5, 1.7, -0.3], device=device)
        head = [torch.randn(7, 611, device=device).to(head_dtype) for _ in range(4)]
        grads = [*guarded.tensors, head[0]]
        owner.append(-1)
        expected = copies(grads)
        wanted_cosines, _ = reference.modulate_(expected, owner, coefficients, head[0], head[1:])
        poison(device)
        cosines, norms = cggm_ops.modulate_(grads, owner, coefficients, head[0], head[1:])
        for found, wanted in zip(grads, expected, strict=True):
            assert_elements("scaled gradient", found, wanted)
        guarded.check()
        assert_norms(norms, grads, owner)
        assert_elements("cosine", cosines, wanted_cosines, terms=1.0)


def check_gram(device: str, dtype: torch.dtype) -> None:
    """segment_gram: odd sizes, views, transposed tensors, sets in another order of memory, many small segments."""
    for sets, sizes in ((1, SIZES), (2, SIZES), (3, SIZES), (5, (700, 8200))):
        guarded = [Guarded(sizes, dtype, device) for _ in range(sets)]
        lists = [list(g.tensors) for g in guarded]
        if sets == 3:
            lists[1] = [tensor.contiguous() for tensor in lists[1]]
        poison(device)
        gram = cggm_ops.segment_gram(lists)
        expected = reference.segment_gram([t for row in lists for t in row], sets)
        assert_elements("gram", gram, expected, terms=products_of_norms(expected))
        for g in guarded:
            g.check()
    near = torch.randn(5000, dtype=torch.float64)
    first, second = near.to(device, dtype), (-near).to(device, dtype)
    second[17] += 0.25
    gram = cggm_ops.segment_gram([[first], [second]])[0]
    exact = (first.double() + second.double()).square().sum()  # what is left where all else cancels
    assert_elements("gram", gram.sum(), exact, terms=gram.abs().sum())


def check_combine(device: str, dtype: torch.dtype) -> None:
    """segment_combine_: all layouts, weights with strides, many segments."""
    for sets, sizes in ((1, SIZES), (2, SIZES + SIZES), (4, SIZES)):
        guarded = [Guarded(sizes, dtype, device) for _ in range(sets)]
        lists = [list(g.tensors) for g in guarded]
        if sets == 4:
            lists[1] = [tensor.contiguous() for tensor in lists[1]]
        weights = torch.randn(sets, len(sizes), dtype=torch.float64).to(device).t()
        wanted, terms = combine_exactly(lists, weights)
        cggm_ops.segment_combine_(lists, weights)
        for found, exact, magnitude in zip(lists[0], wanted, terms, strict=True):
            assert_elements("combination", found, exact, terms=magnitude)
        for g in guarded:
            g.check()


def check_many_segments(device: str, dtype: torch.dtype) -> None:
    """segment_gram and segment_combine_ over more segments than one launch takes."""
    if dtype != torch.float32:
        return
    lists = [
        [torch.randn(index % 7, device=device).to(DTYPES[index % 3]) for index in range(1050)] for _ in "ab"
    ]
    gram = cggm_ops.segment_gram(lists)
    expected = reference.segment_gram([tensor for row in lists for tensor in row], 2)
    assert_elements("gram", gram, expected, terms=products_of_norms(expected))
    weights = torch.randn(1050, 2, device=device)
    wanted, terms = combine_exactly(lists, weights)
    cggm_ops.segment_combine_(lists, weights)
    for found, exact, magnitude in zip(lists[0], wanted, terms, strict=True):
        assert_elements("combination", found, exact, terms=magnitude)


CHECKS: list[Callable[[str, torch.dtype], None]] = [
    check_scale,
    check_special_values,
    check_cosine,
    check_modulate,
    check_gram,
    check_combine,
    check_adamw,
    check_sgd,
    check_many_gradients,
    check_many_segments,
    check_many_params,
]


def run(device: str, only: str, without: str | None) -> Iterator[str]:
    """Run all checks whose name holds `only` and not `without`; yield what passed."""
    for check, dtype in itertools.product(CHECKS + GRID_CHECKS * (device == "cuda"), DTYPES):
        if only in check.__name__ and (without is None or without not in check.__name__):
            check(device, dtype)
            yield f"{check.__name__} {str(dtype).removeprefix('torch.')}"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", choices=("reference", "triton", "compiled"))
    parser.add_argument("--library", help="a library that replaces the implementations when it is loaded")
    parser.add_argument("--only", default="", help="part of the name of the checks to run")
    parser.add_argument("--without", help="part of the name of the checks to leave out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.library:
        torch.ops.load_library(arguments.library)
    forced = cggm_ops.use_backend(arguments.backend) if arguments.backend else contextlib.nullcontext()
    with forced:
        serving = cggm_ops.backend(arguments.device)
        if serving != (arguments.backend or serving):
            raise SystemExit(
                f"{arguments.backend} kernels for {arguments.device} are not there: {serving} serves"
            )
        passed = list(run(arguments.device, arguments.only, arguments.without))
    print(*passed, sep="\n")
    print(f"{len(passed)} checks passed on {arguments.device}")


if __name__ == "__main__":
    main()
