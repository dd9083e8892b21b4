"""Edge cases of modulation: zero norms, NaN, infinity, no tensors, strides, memory around a gradient."""

import math

import pytest
import torch
from cases import (
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

INF, NAN = math.inf, math.nan


@each_implementation
@each_dtype
def test_one_keeps_every_bit_of_not_a_number_too(implementation, dtype):
    """A multiplication would change a signalling NaN."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    patterns = {2: [0x7F81, 0x7C01], 4: [0x7F800001, 1], 8: [0x7FF0000000000001, 1]}[dtype.itemsize]
    grad = torch.tensor(patterns, dtype=width).view(dtype)
    before = grad.clone()
    implementation.ops.scale_([grad], [0], torch.tensor([1.0]))
    if implementation.name != "reference":  # the definition multiplies, which may change a NaN
        assert_same_bits(grad, before)
    assert torch.equal(grad.isnan(), before.isnan())


@each_implementation
def test_no_scale_over_or_underflows(implementation):
    fusion, unimodal = head(2)
    expected, _ = implementation.ops.batched_cosine(fusion, unimodal)
    for scale in (1e-30, 1e30):
        scaled = [u * scale for u in unimodal]
        cosines, _ = implementation.ops.batched_cosine(fusion * scale, scaled)
        torch.testing.assert_close(cosines, expected, rtol=0, atol=3e-7)
        (sq_norm, _) = implementation.ops.scale_([fusion * scale], [0], torch.tensor([1.0]))
        assert sq_norm.item() == pytest.approx(fusion.double().square().sum().item() * scale**2, rel=1e-5)


@each_implementation
def test_nearly_opposed_gradients_keep_their_cosine(implementation):
    fusion = random(4096, dtype=torch.float64)
    other = -fusion + 1e-9 * random(4096, dtype=torch.float64, seed=1)
    cosines, _ = implementation.ops.batched_cosine(fusion, [other, -fusion, fusion])
    assert cosines[0] + 1 < 1e-14
    assert cosines.abs().max() <= 1


@each_implementation
def test_zero_norms_give_zero_and_no_gradient(implementation):
    fusion, unimodal = head(2, 100)
    zero = torch.zeros(100)
    for f, u in ((zero, unimodal), (fusion, [zero, zero]), (zero, [zero, zero])):
        cosines, products = implementation.ops.batched_cosine(f, u)
        assert cosines.tolist() == [0.0, 0.0]
        gradient = implementation.ops.batched_cosine_backward(torch.ones(2), products, f, u)
        assert not gradient.any()


@each_implementation
@pytest.mark.parametrize("bad", [NAN, INF])
def test_not_a_number_propagates_and_stays_with_its_modality(implementation, bad):
    fusion, unimodal = head(3, 1000)
    unimodal[1][777] = bad
    cosines, products = implementation.ops.batched_cosine(fusion, unimodal)
    assert cosines.isnan().tolist() == [False, True, False]
    gradient = implementation.ops.batched_cosine_backward(torch.ones(3), products, fusion, unimodal)
    assert gradient.isnan().all()
    grads = gradients()
    grads[7][40_000] = bad
    sq_norms = implementation.ops.scale_(grads, OWNER, coefficients())
    assert sq_norms.isfinite().tolist() == [False, True, True, True]
    assert not grads[7][40_000].isfinite()
    assert grads[7][:40_000].isfinite().all()


@each_implementation
@pytest.mark.parametrize("coefficient", [NAN, INF, 0.0])
def test_a_bad_coefficient_reaches_only_its_modality(implementation, coefficient):
    """The padding of an incomplete vector must not turn infinity into NaN."""
    grads = [torch.full((5,), 2.0), torch.full((5,), 3.0)]
    sq_norms = implementation.ops.scale_(grads, [0, 1], torch.tensor([coefficient, 1.0]))
    expected = torch.full((5,), 2.0) * coefficient
    torch.testing.assert_close(grads[0], expected, equal_nan=True)
    assert grads[1].tolist() == [3.0] * 5
    torch.testing.assert_close(sq_norms[0], expected.double().square().sum(), equal_nan=True)


@each_implementation
def test_nothing_to_do(implementation):
    sq_norms = implementation.ops.scale_([], [], torch.ones(2))
    assert sq_norms.tolist() == [0.0, 0.0, 0.0]
    empty = torch.empty(0)
    cosines, products = implementation.ops.batched_cosine(empty, [empty, empty])
    assert cosines.tolist() == [0.0, 0.0]
    assert implementation.ops.batched_cosine_backward(
        torch.ones(2), products, empty, [empty, empty]
    ).shape == (0,)
    assert implementation.ops.batched_cosine(torch.ones(4), [])[0].shape == (0,)
    cosines, sq_norms = implementation.ops.modulate_([empty], [-1], torch.ones(0), torch.ones(4), [])
    assert (cosines.shape, sq_norms.tolist()) == ((0,), [0.0])


@each_implementation
def test_more_modalities_than_one_group(implementation):
    fusion, unimodal = head(19, 1025)
    cosines, products = implementation.ops.batched_cosine(fusion, unimodal)
    expected, wanted = reference.batched_cosine(fusion, unimodal)
    torch.testing.assert_close(cosines, expected, rtol=0, atol=6e-8)
    torch.testing.assert_close(products, wanted, rtol=1e-12, atol=1e-9)


@each_implementation
def test_any_order_of_strides_is_scaled_in_place(implementation):
    base = random(6, 5, 4, 3)
    views = {
        "transposed": base.permute(3, 1, 0, 2),
        "channels last": base.clone().to(memory_format=torch.channels_last),
        "a size of one": base[:1].clone().as_strided((1, 5), (999, 1)),
    }
    for name, view in views.items():
        expected = view.clone() * torch.tensor(0.3)
        strides = view.stride()
        implementation.ops.scale_([view], [0], coefficients())
        assert torch.equal(view, expected), name
        assert view.stride() == strides


@each_implementation
def test_head_gradients_of_any_strides_and_shapes(implementation):
    fusion, unimodal = head(2, 600)
    expected, _ = implementation.ops.batched_cosine(fusion, unimodal)
    gradient = implementation.ops.batched_cosine_backward(
        torch.ones(2), reference.head_products(fusion, unimodal), fusion, unimodal
    )
    wide = torch.full((20, 60), NAN)
    wide[:, ::2] = fusion.view(20, 30)
    strided = wide[:, ::2]
    others = [unimodal[0].view(20, 30).T.contiguous().T, unimodal[1].view(600, 1)]
    cosines, products = implementation.ops.batched_cosine(strided, others)
    assert_same_bits(cosines, expected)
    torch.testing.assert_close(
        implementation.ops.batched_cosine_backward(torch.ones(2), products, strided, others).flatten(),
        gradient,
    )


@each_implementation
def test_coefficients_may_be_strided(implementation):
    grads = [torch.ones(3), torch.ones(3)]
    implementation.ops.scale_(grads, [0, 1], torch.tensor([2.0, 9.0, 5.0, 9.0])[::2])
    assert [grad[0].item() for grad in grads] == [2.0, 5.0]


@each_implementation
def test_memory_around_a_gradient_is_left_alone(implementation):
    buffer = random(64)
    before = buffer.clone()
    implementation.ops.scale_([buffer[3:20], buffer[20:41]], [0, 1], coefficients())
    assert torch.equal(buffer[:3], before[:3])
    assert torch.equal(buffer[41:], before[41:])
    assert torch.equal(buffer[3:20], before[3:20] * torch.tensor(0.3))
