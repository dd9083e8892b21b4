"""scale_, batched_cosine and modulate_: hand-worked values, float64, and all implementations against the reference."""

import math

import pytest
import torch
from cases import (
    COEFFICIENTS,
    OWNER,
    assert_same_bits,
    coefficients,
    each_dtype,
    each_implementation,
    gradients,
    head,
    random,
)

from cggm_ops import reference
from tolerances import assert_accurate

INF, NAN = math.inf, math.nan


@each_implementation
def test_hand_worked_cosines(implementation):
    fusion = torch.tensor([3.0, 4.0])
    unimodal = [torch.tensor(v) for v in ([6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0], [4.0, 3.0], [0.0, 0.0])]
    cosines, products = implementation.ops.batched_cosine(fusion, unimodal)
    torch.testing.assert_close(cosines, torch.tensor([1.0, 0.0, -1.0, 0.96, 0.0]), rtol=0, atol=1e-7)
    assert products.tolist() == [50.0, 0.0, -25.0, 24.0, 0.0, 100.0, 25.0, 25.0, 25.0, 0.0, 25.0]


@each_implementation
def test_hand_worked_gradient_of_a_cosine(implementation):
    """At f = (3, 4), u = (1, 0): cos = 3/5, and (u - cos f/5)/5 = (0.128, -0.096)."""
    fusion, unimodal = torch.tensor([3.0, 4.0]), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])]
    _, products = implementation.ops.batched_cosine(fusion, unimodal)
    gradient = implementation.ops.batched_cosine_backward(
        torch.tensor([10.0, 99.0]), products, fusion, unimodal
    )
    torch.testing.assert_close(gradient, torch.tensor([1.28, -0.96]))


@each_implementation
def test_hand_worked_scaling(implementation):
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0]]), torch.tensor([2.0]), torch.tensor([1.0, 1.0])]
    sq_norms = implementation.ops.scale_(grads, [0, 1, -1, 0], torch.tensor([2.0, 0.5]))
    assert [grad.tolist() for grad in grads] == [[6.0, 8.0], [[0.5]], [2.0], [2.0, 2.0]]
    assert sq_norms.tolist() == [108.0, 0.25, 4.0]
    assert sq_norms.dtype == torch.float64


@each_implementation
@each_dtype
@pytest.mark.parametrize("size", [1, 15, 16, 17, 511, 512, 513, 8192, 20_011])
def test_cosines_against_float64(implementation, dtype, size):
    fusion, unimodal = head(5, size, dtype)
    cosines, _ = implementation.ops.batched_cosine(fusion, unimodal)
    assert cosines.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    plain = torch.stack([torch.cosine_similarity(fusion, u, dim=0, eps=0) for u in unimodal])
    exact = torch.stack(
        [torch.cosine_similarity(fusion.double(), u.double(), dim=0, eps=0) for u in unimodal]
    )
    assert_accurate("cosine", dtype, actual=cosines, plain=plain, exact=exact)


@each_implementation
@each_dtype
@pytest.mark.parametrize("size", [1, 17, 513, 20_011])
def test_gradient_of_cosines_against_float64(implementation, dtype, size):
    fusion, unimodal = head(5, size, dtype)
    upstream = random(5, dtype=torch.float64 if dtype == torch.float64 else torch.float32, seed=9)
    _, products = implementation.ops.batched_cosine(fusion, unimodal)
    gradient = implementation.ops.batched_cosine_backward(upstream, products, fusion, unimodal)

    def through_autograd(convert):
        leaf = convert(fusion).requires_grad_()
        cosines = [torch.cosine_similarity(leaf, convert(u), dim=0, eps=0) for u in unimodal]
        return torch.autograd.grad(torch.stack(cosines), leaf, convert(upstream).to(cosines[0].dtype))[0]

    plain, exact = through_autograd(lambda t: t.clone()), through_autograd(lambda t: t.double().clone())
    assert gradient.dtype == dtype
    if size == 1:  # exactly 0: the rest is rounding of terms as large as upstream / |f|
        plain = plain + torch.finfo(dtype).eps * upstream.abs().sum().item() / fusion.abs().item()
    assert_accurate("cosine gradient", dtype, actual=gradient, plain=plain, exact=exact)


@each_implementation
@each_dtype
@pytest.mark.parametrize("coefficient_dtype", [torch.float32, torch.float64])
def test_scaling_against_float64(implementation, dtype, coefficient_dtype):
    before, grads, scales = gradients(dtype), gradients(dtype), coefficients(coefficient_dtype)
    sq_norms = implementation.ops.scale_(grads, OWNER, scales)
    factors = [*COEFFICIENTS, 1.0]
    expected = torch.zeros(4, dtype=torch.float64)
    for old, new, owner in zip(before, grads, OWNER, strict=True):
        factor = scales[owner] if owner >= 0 else torch.tensor(1.0)
        exact = old.double() * (factor.double() if dtype == torch.float64 else factor.float().double())
        assert_accurate("scaled gradient", dtype, actual=new, plain=exact.to(dtype), exact=exact)
        expected[owner] += new.double().square().sum()
        if factors[owner] == 1.0:
            assert_same_bits(new, old)
    assert_accurate("squared norm", dtype, actual=sq_norms, plain=expected, exact=expected)


@each_implementation
@each_dtype
def test_gradients_are_scaled_to_the_same_bits_as_by_the_reference(implementation, dtype):
    grads, expected = gradients(dtype, seed=3), gradients(dtype, seed=3)
    extremes = [
        0.0,
        -0.0,
        INF,
        -INF,
        torch.finfo(dtype).tiny,
        torch.finfo(dtype).max,
        -torch.finfo(dtype).max / 2,
    ]
    for tensors in (grads, expected):
        tensors.append(torch.tensor(extremes, dtype=dtype))
    implementation.ops.scale_(grads, [*OWNER, 1], coefficients())
    reference.scale_(expected, [*OWNER, 1], coefficients())
    for actual, wanted in zip(grads, expected, strict=True):
        assert_same_bits(actual, wanted)


@each_implementation
@each_dtype
def test_modulate_is_both_of_the_others(implementation, dtype):
    fusion, unimodal = head(3, 20_011, dtype)
    grads, alone = gradients(dtype), gradients(dtype)
    cosines, sq_norms = implementation.ops.modulate_(grads, OWNER, coefficients(), fusion, unimodal)
    assert_same_bits(sq_norms, implementation.ops.scale_(alone, OWNER, coefficients()))
    assert_same_bits(cosines, implementation.ops.batched_cosine(fusion, unimodal)[0])
    for actual, wanted in zip(grads, alone, strict=True):
        assert_same_bits(actual, wanted)


@each_implementation
def test_dtypes_may_be_mixed_among_gradients(implementation):
    grads = [
        random(100, dtype=dtype, seed=1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    ]
    expected = [grad.clone() for grad in grads]
    sq_norms = implementation.ops.scale_(grads, [0, 1, 2, 0], coefficients())
    torch.testing.assert_close(
        sq_norms, reference.scale_(expected, [0, 1, 2, 0], coefficients()), rtol=1e-13, atol=0
    )
    for actual, wanted in zip(grads, expected, strict=True):
        assert_same_bits(actual, wanted)
