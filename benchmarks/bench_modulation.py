"""The operators against what a user would otherwise write."""

from __future__ import annotations

import pytest
import torch
from harness import Memory, compare, few_rounds, random_tensor
from torch.nn import functional as F

from cggm_ops import batched_cosine, modulate_, scale_

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Close to one, so that thousands of calls neither overflow nor vanish; exactly one would be skipped.
COEFFICIENTS = (0.99999, 1.00001, 0.99998, 1.00002) * 4


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def head(modalities, size, dtype=torch.float32):
    torch.manual_seed(0)
    fusion = random_tensor(size, dtype)
    return fusion, [fusion + random_tensor(size, dtype) for _ in range(modalities)]


def gradients(tensors, elements, dtype=torch.float32):
    torch.manual_seed(0)
    return [random_tensor(elements // tensors, dtype) for _ in range(tensors)]


def cosine_loop(fusion, unimodal):
    return [F.cosine_similarity(fusion, u, dim=0) for u in unimodal]


def dot_loop(fusion, unimodal):
    """The best a loop can do: the norm of fusion is taken once."""
    norm = torch.dot(fusion, fusion)
    return [torch.dot(fusion, u) / (norm * torch.dot(u, u)).sqrt() for u in unimodal]


def scale_loop(grads, owner, coefficients):
    """As the released scripts do: one parameter after the other, with the norms that clipping would take."""
    return [grad.mul_(coefficients[o]).norm() for grad, o in zip(grads, owner, strict=True)]


def foreach(grads, factors):
    torch._foreach_mul_(grads, factors)
    return torch._foreach_norm(grads)


@pytest.mark.parametrize("modalities", [2, 4, 16])
@pytest.mark.parametrize("size", [1_000, 10_000, 100_000, 1_000_000, 5_000_000, 20_000_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batched_cosine(benchmark, dtype, size, modalities):
    if modalities != 4 and (size not in (10_000, 1_000_000) or dtype != "float32"):
        pytest.skip("one curve over sizes, one over modalities")
    fusion, unimodal = head(modalities, size, DTYPES[dtype])
    compare(
        benchmark,
        lambda: batched_cosine(fusion, unimodal),
        {
            "F.cosine_similarity loop": lambda: cosine_loop(fusion, unimodal),
            "torch.dot loop": lambda: dot_loop(fusion, unimodal),
        },
        memory=Memory(read=(modalities + 1) * size * fusion.itemsize),
        rounds=few_rounds((modalities + 1) * size),
    )


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_batched_cosine_with_backward(benchmark, size):
    fusion, unimodal = head(4, size)
    leaf = fusion.requires_grad_()

    def differentiate(cosines):
        with torch.enable_grad():
            return torch.autograd.grad(torch.stack(list(cosines(leaf, unimodal))).sum(), leaf)

    compare(
        benchmark,
        lambda: differentiate(batched_cosine),
        {"F.cosine_similarity loop": lambda: differentiate(cosine_loop)},
        memory=Memory(read=10 * size * 4, written=size * 4),
    )


SCALED = [  # tensors, elements, modalities
    (10, 100_000, 4),
    (200, 1_600, 4),
    (200, 2_500_000, 2),
    (200, 2_500_000, 4),
    (200, 2_500_000, 16),
    (1000, 5_000_000, 4),
    (200, 25_000_000, 4),
    (200, 100_000_000, 4),
]


@pytest.mark.parametrize(("tensors", "elements", "modalities"), SCALED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_with_norms(benchmark, dtype, tensors, elements, modalities):
    grads = gradients(tensors, elements, DTYPES[dtype])
    owner = [index % modalities for index in range(tensors)]
    coefficients = torch.tensor(COEFFICIENTS[:modalities])
    factors = [COEFFICIENTS[o] for o in owner]
    nbytes = sum(grad.nbytes for grad in grads)
    compare(
        benchmark,
        lambda: scale_(grads, owner, coefficients),
        {
            "loop": lambda: scale_loop(grads, owner, coefficients),
            "foreach mul + norm": lambda: foreach(grads, factors),
            "foreach mul alone": lambda: torch._foreach_mul_(grads, factors),
        },
        memory=Memory(read=nbytes, written=nbytes),
        rounds=few_rounds(elements),
    )


MODULATED = [  # tensors, elements, elements of the head, modalities
    (20, 200_000, 1_000, 4),
    (200, 2_500_000, 10_000, 2),
    (200, 2_500_000, 10_000, 16),
    (1000, 5_000_000, 10_000, 4),
    (200, 25_000_000, 10_000, 4),
]


@pytest.mark.parametrize(("tensors", "elements", "size", "modalities"), MODULATED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_modulate(benchmark, dtype, tensors, elements, size, modalities):
    grads, (fusion, unimodal) = (
        gradients(tensors, elements, DTYPES[dtype]),
        head(modalities, size, DTYPES[dtype]),
    )
    owner = [index % modalities for index in range(tensors)]
    coefficients = torch.tensor(COEFFICIENTS[:modalities])
    factors = [COEFFICIENTS[o] for o in owner]
    nbytes = sum(grad.nbytes for grad in grads)
    compare(
        benchmark,
        lambda: modulate_(grads, owner, coefficients, fusion, unimodal),
        {
            "loops": lambda: (scale_loop(grads, owner, coefficients), cosine_loop(fusion, unimodal)),
            "foreach + cosine loop": lambda: (foreach(grads, factors), cosine_loop(fusion, unimodal)),
            "scale_ + batched_cosine": lambda: (
                scale_(grads, owner, coefficients),
                batched_cosine(fusion, unimodal),
            ),
        },
        memory=Memory(read=nbytes + (modalities + 1) * fusion.nbytes, written=nbytes),
        rounds=few_rounds(elements),
    )
