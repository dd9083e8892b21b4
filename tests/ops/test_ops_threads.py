"""Same input, same bits: at any number of threads, at any address, in any run."""

import pytest
import torch
from cases import (
    IMPLEMENTATIONS,
    OWNER,
    assert_same_bits,
    coefficients,
    each_dtype,
    each_implementation,
    head,
    random,
)

COMPILED = [implementation for implementation in IMPLEMENTATIONS if implementation.name != "reference"]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(ops, dtype):
    """All results of one round, on sizes that every thread gets a share of."""
    fusion, unimodal = head(3, 100_003, dtype)
    grads = [
        random(*shape, dtype=dtype, seed=i)
        for i, shape in enumerate([(150_001,), (40, 1000), (7,), (65_536,)])
    ]
    cosines, products = ops.batched_cosine(fusion, unimodal)
    upstream = torch.ones_like(cosines)
    gradient = ops.batched_cosine_backward(upstream, products, fusion, unimodal)
    both = ops.modulate_(grads, OWNER[:4], coefficients(), fusion, unimodal)
    return [cosines, products, gradient, *both, ops.scale_(grads, OWNER[:4], coefficients()), *grads]


@pytest.mark.parametrize("implementation", COMPILED, ids=lambda i: f"{i.name}-{i.device}")
@each_dtype
def test_bits_do_not_depend_on_the_number_of_threads(implementation, dtype, threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(everything(implementation.ops, dtype))
    for other in results[1:]:
        for actual, wanted in zip(other, results[0], strict=True):
            assert_same_bits(actual, wanted)


@each_implementation
def test_bits_do_not_depend_on_the_address(implementation):
    """Sums that peel off elements to reach an aligned address would."""
    if implementation.name == "reference":
        pytest.skip("plain PyTorch promises nothing about addresses")
    values, other = random(5003), random(5003, seed=1)
    buffers = [torch.empty(5003 + 16) for _ in range(2)]
    results = []
    for shift in range(9):
        f, u = (
            buffer[shift : shift + 5003].copy_(v) for buffer, v in zip(buffers, (values, other), strict=True)
        )
        _, products = implementation.ops.batched_cosine(f, [u])
        results.append(torch.cat([products, implementation.ops.scale_([f], [0], coefficients())]))
    for result in results[1:]:
        assert_same_bits(result, results[0])
