"""What holds for every operator: its schema, fake and autograd layer agree; threads and addresses change no bit."""

import pytest
import torch
from cases import assert_same_bits, each_dtype, random
from kernel_inputs import normal
from operator_cases import OPERATORS, Case
from torch.library import opcheck

import cggm_ops

operators = torch.ops.cggm_ops
each_operator = pytest.mark.parametrize("name", OPERATORS)


def make(name, dtype, sizes):
    torch.manual_seed(0)
    return OPERATORS[name].make(Case(sizes, 3, dtype, unowned=True, draw=normal))


@each_operator
@each_dtype
def test_opcheck(name, dtype):
    call = make(name, dtype, (600, 0, 1, 51, 700))
    opcheck(getattr(operators, call.operator).default, call.arguments)


@pytest.mark.skipif(
    torch.__version__ < (2, 11), reason="no kernels; plain PyTorch promises nothing about threads"
)
@each_operator
@each_dtype
def test_bits_do_not_depend_on_the_number_of_threads(name, dtype):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            call = make(name, dtype, (150_001, 40_000, 7, 65_536))
            found = call.ours()
            if name == "batched_cosine":
                cosines, products = operators.batched_cosine(*call.arguments)
                found = [products, operators.batched_cosine_backward(cosines, products, *call.arguments)]
            found = [found] if isinstance(found, torch.Tensor) else list(found or ())
            results.append(found + [tensor for row in call.changed for tensor in row])
    finally:
        torch.set_num_threads(before)
    assert results[0]
    for other in results[1:]:
        for actual, wanted in zip(other, results[0], strict=True):
            assert_same_bits(actual, wanted)


@pytest.mark.skipif(
    cggm_ops.backend() == "reference", reason="plain PyTorch promises nothing about addresses"
)
def test_bits_do_not_depend_on_the_address():
    """They would if sums treated elements before an aligned address differently."""
    values, other = random(5003), random(5003, seed=1)
    buffers = [torch.empty(5003 + 16) for _ in range(2)]
    results = []
    for shift in range(9):
        f, u = (
            buffer[shift : shift + 5003].copy_(v) for buffer, v in zip(buffers, (values, other), strict=True)
        )
        cosines = cggm_ops.batched_cosine(f, [u])
        results.append(torch.cat([cosines.double(), cggm_ops.scale_([f], [0], torch.tensor([0.3]))]))
    for result in results[1:]:
        assert_same_bits(result, results[0])
