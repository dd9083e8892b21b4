"""segment_gram and segment_combine_ against dot products and weighted sums one by one."""

from __future__ import annotations

import pytest
import torch
from harness import Memory, compare, few_rounds, random_tensor

from cggm_ops import segment_combine_, segment_gram

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_sets(count, tensors, elements, dtype="float32"):
    torch.manual_seed(0)
    return [[random_tensor(elements // tensors, DTYPES[dtype]) for _ in range(tensors)] for _ in range(count)]


def dots(sets):
    """All K² of them, as MMPareto's released script takes them, and its norms besides."""
    return [torch.dot(a, b) for one in sets for other in sets for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("elements", [1_000, 100_000, 1_000_000, 25_000_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_segment_gram_of_one_tensor(benchmark, dtype, elements, count):
    """A batch's features, or one large weight."""
    sets = make_sets(count, 1, elements, dtype)
    compare(
        benchmark,
        lambda: segment_gram(sets),
        {"torch.dot": lambda: dots(sets)},
        memory=Memory(read=count * sets[0][0].nbytes),
        rounds=few_rounds(elements),
    )


ENCODERS = [(10, 100_000), (200, 200_000), (1000, 5_000_000), (200, 100_000_000)]


@pytest.mark.parametrize(("tensors", "elements"), ENCODERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_segment_gram_of_an_encoder(benchmark, dtype, tensors, elements):
    sets = make_sets(2, tensors, elements, dtype)
    compare(
        benchmark,
        lambda: segment_gram(sets),
        {"torch.dot": lambda: dots(sets)},
        memory=Memory(read=2 * elements * DTYPES[dtype].itemsize),
        rounds=few_rounds(elements),
    )


@pytest.mark.parametrize(("tensors", "elements"), [(1, 100_000), *ENCODERS, (200, 25_000_000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_segment_combine(benchmark, dtype, tensors, elements):
    sets = make_sets(2, tensors, elements, dtype)
    weights = torch.tensor([[0.6, 0.4]]).repeat(tensors, 1)
    rows, size = weights.tolist(), DTYPES[dtype].itemsize

    def loop():
        for first, second, (a, b) in zip(*sets, rows, strict=True):
            first.mul_(a).add_(second, alpha=b)

    def foreach():
        torch._foreach_mul_(sets[0], [a for a, _ in rows])
        torch._foreach_add_(sets[0], torch._foreach_mul(sets[1], [b for _, b in rows]))

    compare(
        benchmark,
        lambda: segment_combine_(sets, weights),
        {"loop": loop, "foreach": foreach},
        memory=Memory(read=2 * elements * size, written=elements * size),
        rounds=few_rounds(elements),
    )
