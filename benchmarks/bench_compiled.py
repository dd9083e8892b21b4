"""Every operator against torch.compile of its definition: 2.5 million elements in 10 tensors, which compile in seconds.

The definitions' checks look at addresses, which no graph can; where a definition without them exists it is compiled.
"""

from __future__ import annotations

import pytest
import torch
from harness import Memory, compare, random_tensor

import cggm_ops
from cggm_ops import reference

TENSORS, ELEMENTS, HEAD = 10, 2_500_000, 100_000
OWNER = [index % 4 for index in range(TENSORS)]


def gradients():
    return [random_tensor(ELEMENTS // TENSORS).mul_(0.01) for _ in range(TENSORS)]


def coefficients():
    return torch.tensor([0.99999, 1.00001, 0.99998, 1.00002])


def head():
    fusion = random_tensor(HEAD)
    return fusion, [fusion + random_tensor(HEAD) for _ in range(4)]


def scale():
    grads, factors = gradients(), coefficients()
    compiled = torch.compile(lambda grads: reference._scale_(grads, OWNER, factors))
    return lambda: cggm_ops.scale_(grads, OWNER, factors), lambda: compiled(grads), (1, 1)


def modulate():
    grads, factors, (fusion, unimodal) = gradients(), coefficients(), head()

    @torch.compile
    def compiled(grads, fusion, unimodal):
        return reference.batched_cosine(fusion, unimodal)[0], reference._scale_(grads, OWNER, factors)

    ours = lambda: cggm_ops.modulate_(grads, OWNER, factors, fusion, unimodal)  # noqa: E731
    return ours, lambda: compiled(grads, fusion, unimodal), (1, 1)


def gram():
    sets = [gradients() for _ in range(2)]
    compiled = torch.compile(lambda a, b: reference.segment_gram([*a, *b], 2))
    return lambda: cggm_ops.segment_gram(sets), lambda: compiled(*sets), (2, 0)


def combine():
    sets, weights = [gradients() for _ in range(2)], torch.tensor([[0.6, 0.4]]).repeat(TENSORS, 1)
    compiled = torch.compile(lambda a, b: reference.segment_combine_(a, b, weights))
    return lambda: cggm_ops.segment_combine_(sets, weights), lambda: compiled(*sets), (2, 1)


def adamw():
    params, grads, m, v = (gradients() for _ in range(4))
    torch._foreach_abs_(v)
    steps, factors = [torch.tensor(10.0) for _ in params], coefficients()
    modulation = cggm_ops.Modulation(owner=OWNER, grad_scale=factors)
    settings = cggm_ops.AdamSettings(lr=1e-4, weight_decay=0.01)
    numbers = (1e-4, 0.9, 0.999, 1e-8, 0.01, True, False)

    @torch.compile
    def compiled(*lists):
        reference.adamw_(*lists, OWNER, factors, None, None, *numbers)

    def ours():
        states = {"exp_avgs": m, "exp_avg_sqs": v, "steps": steps}
        cggm_ops.adamw_(params, grads, **states, settings=settings, modulation=modulation)

    return ours, lambda: compiled(params, grads, m, v, steps), (4, 3)


def sgd():
    params, grads, buffers = (gradients() for _ in range(3))
    factors = coefficients()
    modulation = cggm_ops.Modulation(owner=OWNER, grad_scale=factors)
    settings = cggm_ops.SGDSettings(lr=1e-4, momentum=0.9)
    numbers = (1e-4, 0.9, 0.0, 0.0, False, False, False)

    @torch.compile
    def compiled(*lists):
        reference.sgd_(*lists, OWNER, factors, None, None, *numbers)

    def ours():
        cggm_ops.sgd_(params, grads, momentum_buffers=buffers, settings=settings, modulation=modulation)

    return ours, lambda: compiled(params, grads, buffers), (3, 2)


CASES = {
    "scale_": scale,
    "modulate_": modulate,
    "segment_gram": gram,
    "segment_combine_": combine,
    "adamw_": adamw,
    "sgd_": sgd,
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_definition(benchmark, name):
    with torch.no_grad():
        ours, compiled, (read, written) = CASES[name]()
        memory = Memory(read=4 * read * ELEMENTS, written=4 * written * ELEMENTS)
        compare(benchmark, ours, {"torch.compile": compiled}, memory=memory, rounds=11)


def test_compiled_batched_cosine(benchmark):
    fusion, unimodal = head()
    compiled = torch.compile(lambda fusion, unimodal: reference.batched_cosine(fusion, unimodal)[0])
    with torch.no_grad():
        compare(
            benchmark,
            lambda: cggm_ops.batched_cosine(fusion, unimodal),
            {"torch.compile": lambda: compiled(fusion, unimodal)},
            memory=Memory(read=5 * fusion.nbytes),
        )


def test_compiled_batched_cosine_with_backward(benchmark):
    fusion, unimodal = head()
    leaf = fusion.requires_grad_()
    compiled = torch.compile(lambda fusion, unimodal: reference.batched_cosine(fusion, unimodal)[0])

    def differentiate(cosines):
        return torch.autograd.grad(cosines(leaf, unimodal).sum(), leaf)

    compare(
        benchmark,
        lambda: differentiate(cggm_ops.batched_cosine),
        {"torch.compile": lambda: differentiate(compiled)},
        memory=Memory(read=10 * fusion.nbytes, written=fusion.nbytes),
    )
