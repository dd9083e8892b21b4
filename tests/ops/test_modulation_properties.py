"""Properties of modulation that hold for any input."""

import torch
from cases import each_implementation
from hypothesis import given, settings
from hypothesis import strategies as st

checked = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 1200)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_implementation
@checked
@given(seed=seeds, size=sizes, modalities=st.integers(1, 10), data=st.data())
def test_cosines_follow_a_permutation_of_the_modalities(implementation, seed, size, modalities, data):
    fusion, unimodal = normal(seed, size), list(normal(seed + 1, modalities, size).unbind())
    order = data.draw(st.permutations(range(modalities)))
    cosines, _ = implementation.ops.batched_cosine(fusion, unimodal)
    permuted, _ = implementation.ops.batched_cosine(fusion, [unimodal[m] for m in order])
    torch.testing.assert_close(permuted, cosines[list(order)], rtol=0, atol=1.2e-7)


@each_implementation
@checked
@given(seed=seeds, size=sizes, exponent=st.integers(-60, 60), sign=st.sampled_from([1.0, -1.0]))
def test_cosines_do_not_depend_on_scale_but_on_sign(implementation, seed, size, exponent, sign):
    fusion, unimodal = normal(seed, size), [normal(seed + 1, size)]
    cosines, _ = implementation.ops.batched_cosine(fusion, unimodal)
    scaled, _ = implementation.ops.batched_cosine(fusion, [unimodal[0] * sign * 2.0**exponent])
    assert abs(cosines.item()) <= 1
    torch.testing.assert_close(scaled, sign * cosines, rtol=0, atol=6e-8)


@each_implementation
@checked
@given(seed=seeds, size=sizes, modalities=st.integers(1, 10))
def test_the_gradient_of_a_cosine_is_orthogonal_to_its_input(implementation, seed, size, modalities):
    """Scaling f changes no cosine."""
    fusion, unimodal = normal(seed, size).double(), [u.double() for u in normal(seed + 1, modalities, size)]
    _, products = implementation.ops.batched_cosine(fusion, unimodal)
    upstream = normal(seed + 2, modalities).double()
    gradient = implementation.ops.batched_cosine_backward(upstream, products, fusion, unimodal)
    assert abs(torch.dot(gradient, fusion).item()) < 1e-12 * (1 + upstream.abs().sum().item())


@st.composite
def segments(draw):
    modalities = draw(st.integers(1, 6))
    shapes = draw(st.lists(st.integers(0, 700), min_size=1, max_size=12))
    owner = [draw(st.integers(-1, modalities - 1)) for _ in shapes]
    seed = draw(seeds)
    grads = [normal(seed + i, size) for i, size in enumerate(shapes)]
    return grads, owner, normal(seed - 1 if seed else 1, modalities)


@each_implementation
@checked
@given(case=segments())
def test_squared_norms_are_those_of_the_scaled_gradients(implementation, case):
    grads, owner, coefficients = case
    before = [grad.double().square().sum() for grad in grads]
    sq_norms = implementation.ops.scale_(grads, owner, coefficients)
    after = torch.zeros_like(sq_norms)
    scaled = torch.zeros_like(sq_norms)
    for grad, old, modality in zip(grads, before, owner, strict=True):
        after[modality] += grad.double().square().sum()
        scaled[modality] += old * (coefficients[modality].double() ** 2 if modality >= 0 else 1)
    torch.testing.assert_close(sq_norms, after, rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(sq_norms, scaled, rtol=1e-5, atol=1e-30)


@each_implementation
@checked
@given(case=segments(), data=st.data())
def test_the_order_of_the_tensors_does_not_matter(implementation, case, data):
    grads, owner, coefficients = case
    order = data.draw(st.permutations(range(len(grads))))
    copies = [grads[i].clone() for i in order]
    sq_norms = implementation.ops.scale_(grads, owner, coefficients)
    permuted = implementation.ops.scale_(copies, [owner[i] for i in order], coefficients)
    torch.testing.assert_close(permuted, sq_norms, rtol=1e-12, atol=1e-300)
    assert all(torch.equal(copy, grads[i]) for copy, i in zip(copies, order, strict=True))


@each_implementation
@checked
@given(case=segments(), powers=st.lists(st.integers(-8, 8), min_size=6, max_size=6))
def test_scaling_by_powers_of_two_is_undone_exactly(implementation, case, powers):
    grads, owner, coefficients = case
    before = [grad.clone() for grad in grads]
    factors = 2.0 ** torch.tensor(powers[: coefficients.numel()], dtype=torch.float32)
    implementation.ops.scale_(grads, owner, factors)
    implementation.ops.scale_(grads, owner, 1 / factors)
    assert all(torch.equal(grad, old) for grad, old in zip(grads, before, strict=True))
