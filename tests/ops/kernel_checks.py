"""Checks every kernel against the reference on one device: `python kernel_checks.py --device cuda --backend compiled`.

This is a program and not a test, because it runs in several places: on a GPU (`make gpu`), under the interpreter of
Triton, and with the CUDA sources built for the host. Inputs are random, sizes are odd, memory for results is filled
with NaN beforehand, and some tensors are views whose neighbours in memory must not change.
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

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / path) for path in ("tests/ops", "tests", "benchmarks", ".", "python")]

from kernel_inputs import (  # noqa: E402
    DTYPES,
    SIZES,
    assert_norms,
    compare,
    guarded,
    mixed,
    normal,
    poison,
)
from kernel_optimizer_checks import (  # noqa: E402
    check_adamw,
    check_counters_on_host,
    check_many_params,
    check_sgd,
    check_special_steps,
    compare_step,
)
from kernel_segment_checks import check_combine, check_gram, check_many_segments  # noqa: E402
from operator_cases import Case, adamw, modulate, scale  # noqa: E402

import cggm_ops  # noqa: E402
from cggm_ops import AdamSettings, Modulation, reference  # noqa: E402
from tolerances import assert_elements  # noqa: E402


def check_scale(device: str, dtype: torch.dtype) -> None:
    """scale_: views of all alignments, a modality without tensors, unscaled tensors, a coefficient of one."""
    for coefficient_dtype, stride in itertools.product((torch.float32, torch.float64), (1, 2)):
        case, guards = guarded(device, dtype, SIZES + SIZES[::-1], modalities=5)
        values = torch.tensor([0.37, 1.0, -1.9, 0.0, 2.5, 3.0], dtype=coefficient_dtype)
        call = scale(case, values.repeat_interleave(stride).to(device)[::stride])
        norms, _ = compare(call, "scaled gradient", exact=False)
        guards.check()
        assert_norms(norms, call.arguments[0], call.arguments[1])


def check_many_gradients(device: str, dtype: torch.dtype) -> None:
    """scale_ with more tensors than fit in one launch, of all dtypes; a second run gives the same bits."""
    if dtype != torch.float32:
        return
    sizes = tuple(5 + index % 97 for index in range(1100))
    call = scale(
        Case(sizes, 3, device=device, unowned=True, draw=mixed()), torch.tensor([0.5, 1.7, -0.3]).to(device)
    )
    grads, owner, coefficients = call.arguments
    again = [grad.clone() for grad in grads]
    norms, _ = compare(call, "scaled gradient", exact=False)
    assert_norms(norms, grads, owner)
    poison(device)
    assert torch.equal(norms, cggm_ops.scale_(again, owner, coefficients)), "two runs differ"


def check_special_values(device: str, dtype: torch.dtype) -> None:
    """NaN and infinity: a factor of one keeps all bits; an infinite coefficient does not turn padding into NaN."""
    grad = torch.randn(1003, device=device).to(dtype)
    grad[5], grad[7] = float("nan"), float("inf")
    before = grad.clone()
    cggm_ops.scale_([grad], [0], torch.ones(1, device=device))
    bits = {4: torch.int32, 2: torch.int16}[grad.element_size()]
    assert torch.equal(grad.view(bits), before.view(bits)), "a coefficient of one changed bits"
    grad = torch.ones(1003, device=device).to(dtype)
    norms = cggm_ops.scale_([grad], [0], torch.full((1,), float("inf"), device=device))
    assert norms[0] == float("inf"), "an infinite coefficient turned padding into NaN"
    assert cggm_ops.scale_([], [], torch.ones(2, device=device)).tolist() == [0, 0, 0], "no tensors at all"


def check_cosine(device: str, dtype: torch.dtype) -> None:
    """batched_cosine and its backward: odd sizes, unaligned rows, zero norms, tiny and huge values."""
    for size, modalities in ((1, 1), (33, 3), (4096, 2), (3 * 4096 + 1, 5), (517, 0), (2048, 17)):
        case, guards = guarded(device, dtype, modalities=modalities)
        fusion, *unimodal = case.head(size)
        if modalities > 2:
            unimodal[1] = torch.zeros_like(fusion)
            unimodal[2] = fusion * -1
        compare_cosine(fusion, unimodal)
        guards.check()
    for factor in (1e-30, 1e30) if dtype in (torch.float32, torch.bfloat16) else ():
        rows = [normal(700, dtype, device) * factor for _ in range(3)]
        compare_cosine(rows[0], rows[1:])
    fusion = normal(700, dtype, device)
    broken = fusion.clone()
    broken[3] = float("nan")
    cosines = cggm_ops.batched_cosine(fusion, [broken, fusion])
    assert cosines.isnan().tolist() == [True, False], "NaN must stay in its own row"


def compare_cosine(fusion: Tensor, unimodal: list[Tensor]) -> None:
    """Compare one call and its backward with float64."""
    fusion = fusion.detach().requires_grad_()
    poison(fusion.device.type)
    cosines = cggm_ops.batched_cosine(fusion, unimodal)
    expected, exact = reference.batched_cosine(fusion.detach(), unimodal)
    assert_elements("cosine", cosines, expected, terms=1.0)
    upstream = torch.randn_like(cosines)
    poison(fusion.device.type)
    cosines.backward(upstream)
    wide = [row.detach().double() for row in (fusion, *unimodal)]
    wanted = reference.batched_cosine_backward(upstream.double(), exact, wide[0], wide[1:])
    norm = wide[0].norm().clamp_min(1e-300)
    assert_elements("cosine gradient", fusion.grad, wanted, terms=upstream.double().abs().sum() / norm)


def check_modulate(device: str, dtype: torch.dtype) -> None:
    """modulate_: head gradients of another dtype, and one that is among the gradients."""
    for head_dtype in (dtype, torch.float32):
        case, guards = guarded(device, dtype, SIZES + (5,) * 64)  # more than fit in the small table
        call = modulate(case, 7 * 611, head_dtype)
        grads, owner, coefficients, fusion, _ = call.arguments
        grads.append(fusion)
        owner.append(-1)
        coefficients.copy_(torch.tensor([0.5, 1.7, -0.3]))
        (cosines, norms), (wanted, _) = compare(call, "scaled gradient", exact=False)
        guards.check()
        assert_norms(norms, grads, owner)
        assert_elements("cosine", cosines, wanted, terms=1.0)


def check_full_grid(device: str, dtype: torch.dtype) -> None:
    """modulate_ and adamw_ with more chunks than a GPU runs blocks at a time."""
    case = Case((500 * 8192 + 5, 70_001, 3), device=device, dtype=dtype, unowned=True, draw=normal)
    for _ in range(3):
        call = modulate(case, 1_000_003)
        (cosines, norms), (wanted, _) = compare(call, "scaled gradient", exact=False)
        assert_norms(norms, *call.arguments[:2])
        assert_elements("cosine", cosines, wanted, terms=1.0)
    counters = [torch.zeros((), device=device) for _ in case.sizes]
    for taken in range(1, 4):
        compare_step(adamw(case, AdamSettings(lr=0.05), Modulation(), counters))
        assert [counter.item() for counter in counters] == [taken] * len(counters), "steps"


def check_streams(device: str, dtype: torch.dtype) -> None:
    """batched_cosine on a stream that is busy, and meanwhile the same call on another one."""
    fusion, *unimodal = Case((), 3, dtype, device, draw=normal).head(50_001)
    wanted, _ = reference.batched_cosine(fusion, unimodal)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second: what follows waits
        waiting = cggm_ops.batched_cosine(fusion, unimodal)
    with torch.cuda.stream(second):
        found = [cggm_ops.batched_cosine(fusion, unimodal) for _ in range(3)]
    torch.cuda.synchronize()
    for cosines in (waiting, *found):
        assert_elements("cosine", cosines, wanted, terms=1.0)


CHECKS: list[Callable[[str, torch.dtype], None]] = [
    check_scale,
    check_special_values,
    check_cosine,
    check_modulate,
    check_gram,
    check_combine,
    check_adamw,
    check_sgd,
    check_special_steps,
    check_many_gradients,
    check_many_segments,
    check_many_params,
]


def check_float64(device: str) -> None:
    """GPU kernels refuse float64 before they change anything; the public functions choose the reference for it."""
    ones = lambda: torch.ones(3, dtype=torch.float64, device=device)  # noqa: E731
    param, step = ones(), torch.zeros((), device=device)
    kernels = torch.ops.cggm_ops
    numbers = (0.1, 0.9, 0.99, 1e-8, 0.1, True, False)
    for call in (
        lambda: kernels.scale_([param], [0], 2 * ones()),
        lambda: kernels.batched_cosine(param, [ones()]),
        lambda: kernels.adamw_([param], [ones()], [ones()], [ones()], [step], [], None, None, *numbers),
    ):
        assert "float64" in refusal(call), "a GPU kernel took float64"
    assert param.tolist() == [1.0] * 3
    assert step.item() == 0.0
    if device == "cuda":
        cggm_ops.scale_([param], [0], 2 * ones())
        assert param.tolist() == [2.0] * 3


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which a call is refused, or nothing."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def run(device: str, only: str, without: str | None) -> Iterator[str]:
    """Run all checks whose name contains `only` but not `without`; yield those that passed."""
    for check, dtype in itertools.product(
        CHECKS + [check_full_grid, check_streams] * (device == "cuda"), DTYPES
    ):
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
        if arguments.device == "cuda" or arguments.library or arguments.backend == "triton":
            check_float64(arguments.device)
        if arguments.library:
            check_counters_on_host(arguments.library)
    print(*passed, sep="\n")
    print(f"{len(passed)} checks passed on {arguments.device}")


if __name__ == "__main__":
    main()
