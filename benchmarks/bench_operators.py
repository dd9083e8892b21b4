"""Every operator against what a user would otherwise write, and against torch.compile of its definition."""

from __future__ import annotations

import pytest
import torch
from harness import Memory, compare, few_rounds
from operator_cases import OPERATORS, Case, cosine, gram, modulate, scale

from cggm_ops import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def run(benchmark, call, elements):
    with torch.no_grad():
        compare(benchmark, call.ours, call.others, memory=call.memory, rounds=few_rounds(elements))


@pytest.mark.parametrize("modalities", [2, 4, 16])
@pytest.mark.parametrize("size", [1_000, 10_000, 100_000, 1_000_000, 5_000_000, 20_000_000])
@each_dtype
def test_batched_cosine(benchmark, dtype, size, modalities):
    if modalities != 4 and (size not in (10_000, 1_000_000) or dtype != "float32"):
        pytest.skip("one curve over sizes, one over modalities")
    run(benchmark, cosine(Case((size,), modalities, DTYPES[dtype])), (modalities + 1) * size)


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_batched_cosine_with_backward(benchmark, size):
    call = cosine(Case((size,), 4))
    fusion = call.arguments[0]
    fusion.requires_grad_()
    compiled = torch.compile(lambda: call.definition()[0])

    def differentiate(cosines):
        return lambda: torch.autograd.grad(torch.stack(list(cosines())).sum(), fusion)

    others = {**call.others, "torch.compile": compiled}
    compare(
        benchmark,
        differentiate(call.ours),
        {name: differentiate(other) for name, other in others.items()},
        memory=Memory(read=10 * size * 4, written=size * 4),
    )


@pytest.mark.parametrize(
    ("tensors", "elements", "modalities"),
    [
        (10, 100_000, 4),
        (200, 1_600, 4),
        (200, 2_500_000, 2),
        (200, 2_500_000, 4),
        (200, 2_500_000, 16),
        (1000, 5_000_000, 4),
        (200, 25_000_000, 4),
        (200, 100_000_000, 4),
    ],
)
@each_dtype
def test_scale_with_norms(benchmark, dtype, tensors, elements, modalities):
    case = Case.even(elements, tensors, modalities=modalities, dtype=DTYPES[dtype])
    run(benchmark, scale(case), elements)


@pytest.mark.parametrize(
    ("tensors", "elements", "head", "modalities"),
    [
        (20, 200_000, 1_000, 4),
        (200, 2_500_000, 10_000, 2),
        (200, 2_500_000, 10_000, 16),
        (1000, 5_000_000, 10_000, 4),
        (200, 25_000_000, 10_000, 4),
    ],
)
@each_dtype
def test_modulate(benchmark, dtype, tensors, elements, head, modalities):
    case = Case.even(elements, tensors, modalities=modalities, dtype=DTYPES[dtype])
    run(benchmark, modulate(case, head), elements)


@pytest.mark.parametrize("sets", [2, 3])
@pytest.mark.parametrize("elements", [1_000, 100_000, 1_000_000, 25_000_000])
@each_dtype
def test_segment_gram_of_one_tensor(benchmark, dtype, elements, sets):
    """A batch's features, or one large weight."""
    run(benchmark, gram(Case((elements,), dtype=DTYPES[dtype]), sets), elements)


ENCODERS = [(10, 100_000), (200, 200_000), (1000, 5_000_000), (200, 25_000_000), (200, 100_000_000)]


@pytest.mark.parametrize(("tensors", "elements"), [(1, 100_000), *ENCODERS])
@pytest.mark.parametrize("name", ["segment_gram", "segment_combine_", "adamw_", "sgd_", "sgd_ with momentum"])
@each_dtype
def test_encoder(benchmark, dtype, name, tensors, elements):
    """The gradients of two encoders."""
    if name == "sgd_" and dtype == "bfloat16":
        pytest.skip("one of them without momentum is enough")
    run(benchmark, OPERATORS[name].make(Case.even(elements, tensors, dtype=DTYPES[dtype])), elements)


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_definition(benchmark, monkeypatch, name):
    """2.5 million elements in 10 tensors compile in seconds. The checks, which cannot be compiled, are left out."""
    for module in (reference.modulation, reference.segments, reference.optimizers):
        for check in [found for found in vars(module) if found.startswith("check_")]:
            monkeypatch.setattr(module, check, lambda *_: None)
    call = OPERATORS[name].make(Case.even(2_500_000, 10, modalities=4))
    with torch.no_grad():
        others = {"torch.compile": torch.compile(call.definition)}
        compare(benchmark, call.ours, others, memory=call.memory, rounds=11)
