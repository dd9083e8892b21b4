"""segment_gram and segment_combine_: hand-worked values, float64, unusual strides, refusals, autograd."""

import pytest
import torch
from cases import each_dtype, each_implementation, gradients, random

from cggm_ops import segment_combine_, segment_gram
from tolerances import assert_accurate

operators = torch.ops.cggm_ops


def make_sets(count, dtype=torch.float32):
    return [gradients(dtype, seed=100 * k) for k in range(count)]


def flatten(sets):
    return [tensor for tensors in sets for tensor in tensors]


@each_implementation
def test_hand_worked_products(implementation):
    sets = [
        [torch.tensor([3.0, 4.0]), torch.tensor([[2.0]])],
        [torch.tensor([1.0, -1.0]), torch.tensor([[5.0]])],
    ]
    gram = implementation.ops.segment_gram(flatten(sets), 2)
    assert gram.tolist() == [[[25.0, -1.0], [-1.0, 2.0]], [[4.0, 10.0], [10.0, 25.0]]]
    assert gram.dtype == torch.float64


@each_implementation
def test_hand_worked_combination(implementation):
    into, others = (
        [torch.tensor([3.0, 4.0]), torch.tensor(2.0)],
        [torch.tensor([1.0, -1.0]), torch.tensor(5.0)],
    )
    implementation.ops.segment_combine_(into, others, torch.tensor([[2.0, 10.0], [-1.0, 0.5]]))
    assert [tensor.tolist() for tensor in into] == [[16.0, -2.0], 0.5]
    assert [tensor.tolist() for tensor in others] == [[1.0, -1.0], 5.0]


@each_implementation
@each_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_products_against_float64(implementation, dtype, count):
    sets = make_sets(count, dtype)
    gram = implementation.ops.segment_gram(flatten(sets), count)
    for segment, products in enumerate(gram):
        rows = torch.stack([tensors[segment].double().flatten() for tensors in sets])
        assert_accurate("gram", dtype, actual=products, plain=rows @ rows.T, exact=rows @ rows.T)
        assert torch.equal(products, products.T)


@each_implementation
def test_nearly_opposed_gradients_keep_the_norm_of_their_sum(implementation):
    first = random(100_000, scale=100.0)
    second = -first + random(100_000, seed=1, scale=5e-5)
    gram = implementation.ops.segment_gram([first, second], 2)[0]
    norm = (gram[0, 0] + 2 * gram[0, 1] + gram[1, 1]).clamp(min=0).sqrt()
    torch.testing.assert_close(norm, (first.double() + second.double()).norm(), rtol=0.1, atol=0)


@each_implementation
@each_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_combination_against_float64(implementation, dtype, count):
    sets = make_sets(count, dtype)
    weights = random(len(sets[0]), count, seed=9)
    exact = [
        sum(w.double() * t[s].double() for w, t in zip(weights[s], sets, strict=True))
        for s in range(len(weights))
    ]
    plain = [
        sum(w.to(dtype) * t[s] for w, t in zip(weights[s], sets, strict=True)) for s in range(len(weights))
    ]
    implementation.ops.segment_combine_(sets[0], flatten(sets[1:]), weights)
    for actual, one, other in zip(sets[0], plain, exact, strict=True):
        assert_accurate("combination", dtype, actual=actual, plain=one, exact=other)


def test_noise_is_one_more_set():
    first, second = [random(40), random(3)], [random(40, seed=1), random(3, seed=2)]
    noise = [random(40, seed=3), random(3, seed=4)]
    weights, deviations = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0.1, 3.0])
    expected = [
        w[0] * a + w[1] * b + d * n
        for w, a, b, d, n in zip(weights, first, second, deviations, noise, strict=True)
    ]
    segment_combine_([first, second], weights, noise=noise, deviations=deviations)
    for actual, wanted in zip(first, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    with pytest.raises(ValueError, match="noise and deviations must be given together"):
        segment_combine_([first], torch.ones(2, 1), noise=noise)
    with pytest.raises(ValueError, match=r"deviations must be \[S\]"):
        segment_combine_([first], torch.ones(2, 1), noise=noise, deviations=torch.ones(3))


@each_implementation
def test_any_strides(implementation):
    base, other = random(6, 5, 4), random(6, 5, 4, seed=1)
    arranged = [
        (base.clone(), other.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
        (base.permute(2, 0, 1).contiguous().permute(1, 2, 0), other.clone()),
        (base.clone(), torch.stack([other, other], -1)[..., 0]),
    ]
    weights = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    for first, second in arranged:
        gram = implementation.ops.segment_gram([first, second], 2)[0]
        torch.testing.assert_close(gram[0, 1], (base.double() * other.double()).sum(), rtol=1e-12, atol=0)
        implementation.ops.segment_combine_([first], [second], weights)
        torch.testing.assert_close(first, 2 * base - 3 * other, rtol=1e-6, atol=1e-6)


@each_implementation
def test_products_of_tensors_with_gaps(implementation):
    wide = random(8, 8)
    gram = implementation.ops.segment_gram([wide[:, :3], wide[:, 5:]], 2)[0]
    torch.testing.assert_close(gram[0, 1], (wide[:, :3].double() * wide[:, 5:].double()).sum())


SHARED = random(6)
REFUSED = {
    "nothing": (lambda ops: ops.segment_gram([], 1), "sets must be one or more lists"),
    "uneven": (lambda ops: ops.segment_gram([random(2)] * 3, 2), "found 3 tensors in 2 sets"),
    "shapes": (
        lambda ops: ops.segment_gram([random(4), random(2, 2)], 2),
        r"sets\[1\]\[0\] must have the shape",
    ),
    "dtypes": (lambda ops: ops.segment_gram([random(4), random(4).double()], 2), r"sets\[1\]\[0\] must have"),
    "integers": (
        lambda ops: ops.segment_gram([torch.ones(2, dtype=torch.int32)], 1),
        "must be float32, bfloat16",
    ),
    "weights' shape": (
        lambda ops: ops.segment_combine_([random(4)], [random(4)], torch.ones(1, 3)),
        "one column per set",
    ),
    "weights' dtype": (
        lambda ops: ops.segment_combine_([random(4)], [random(4)], torch.ones(1, 2, dtype=torch.int32)),
        "weights must be",
    ),
    "gaps": (lambda ops: ops.segment_combine_([random(8)[::2]], [random(4)], torch.ones(1, 2)), "contiguous"),
    "shared": (
        lambda ops: ops.segment_combine_([SHARED[:4]], [SHARED[2:]], torch.ones(1, 2)),
        r"shares memory with sets\[0\]\[0\]",
    ),
    "twice": (
        lambda ops: ops.segment_combine_([SHARED, SHARED], [random(6), random(6)], torch.ones(2, 2)),
        "must not share memory",
    ),
}


@each_implementation
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(implementation, case):
    call, message = REFUSED[case]
    before = SHARED.clone()
    with pytest.raises(ValueError, match=message):
        call(implementation.ops)
    assert torch.equal(SHARED, before)


def test_autograd_stays_out():
    leaf = random(5).requires_grad_()
    assert not segment_gram([[leaf]]).requires_grad
    version = (grad := random(5))._version
    segment_combine_([[grad], [random(5)]], torch.ones(1, 2))
    assert grad._version > version
    with pytest.raises(RuntimeError, match="requires grad"):
        operators.segment_combine_([leaf], [random(5)], torch.ones(1, 2))


def test_a_leaf_that_requires_grad_is_not_changed():
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"sets\[0\] holds a tensor that requires grad"):
        segment_combine_([[leaf], [torch.ones(3)]], torch.ones(1, 2))
    assert leaf.tolist() == [1.0] * 3


@each_implementation
def test_weights_that_the_call_would_change_are_refused(implementation):
    weights = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"weights shares memory with sets\[0\]\[0\]"):
        implementation.ops.segment_combine_([weights[0]], [torch.ones(2)], weights)
    assert weights.tolist() == [[1.0, 1.0]]
