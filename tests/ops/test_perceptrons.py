"""perceptrons: hand-worked values, plain autograd in float64, odd shapes, refusals."""

import itertools
import math

import pytest
import torch
from cases import IMPLEMENTATIONS, assert_same_bits, each_implementation, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.nn import functional as F

from cggm_ops import perceptrons, use_backend
from tolerances import assert_accurate

operators = torch.ops.cggm_ops
IGNORED = -100


def make(rows=13, widths=(5, 8), hidden=(7,), classes=4, ignored=False, dtype=torch.float32, seed=0):
    """Inputs, parameters and target of as many networks as there are widths."""
    inputs = [random(rows, width, dtype=dtype, seed=seed + m) for m, width in enumerate(widths)]
    networks = []
    for m, width in enumerate(widths):
        sizes = [width, *hidden, classes]
        networks.append([])
        for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
            scale = 1 / math.sqrt(max(before, 1))
            networks[-1].append(random(after, before, dtype=dtype, seed=seed + 10 * m + layer, scale=scale))
            networks[-1].append(random(after, dtype=dtype, seed=seed + 100 + 10 * m + layer))
    target = torch.arange(rows) * 7 % classes
    if ignored:
        target[::3] = IGNORED
    return inputs, networks, target


def plain(inputs, networks, target, rectified):
    """The same by autograd: losses, logits."""
    losses, logits = [], []
    for x, network, first in zip(inputs, networks, rectified, strict=True):
        x = x.relu() if first else x
        for weight, bias in zip(network[:-2:2], network[1:-2:2], strict=True):
            x = F.linear(x, weight, bias).relu()
        logits.append(F.linear(x, *network[-2:]))
        losses.append(F.cross_entropy(logits[-1], target))
    return torch.stack(losses), torch.stack(logits)


def flatten(networks):
    return [tensor for network in networks for tensor in network]


def differentiated(function, inputs, networks, target, rectified, scale=1.0):
    """Losses, logits and all gradients of the losses' sum times `scale`."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    networks = [[p.detach().clone().requires_grad_() for p in network] for network in networks]
    *total, losses, logits = function(inputs, networks, target, rectified)
    total = total[0] if total else losses.sum()
    gradients = torch.autograd.grad(total * scale, [*inputs, *flatten(networks)])
    return [losses.detach(), logits.detach(), *gradients]


def ours(inputs, networks, target, rectified):
    return perceptrons(inputs, networks, target, rectified=rectified)


@pytest.fixture(params=[implementation.name for implementation in IMPLEMENTATIONS])
def forced(request):
    with use_backend(request.param):
        yield request.param


@each_implementation
def test_hand_worked_values(implementation):
    """One layer: x = 1, logits (ln 3, 0), probabilities (3/4, 1/4), the second one true."""
    x, weight, bias = torch.tensor([[1.0]]), torch.tensor([[math.log(3.0)], [0.0]]), torch.zeros(2)
    call = ([x], [weight, bias], [1], [0], torch.tensor([1]))
    losses, logits, found = implementation.ops.perceptrons(*call, True)
    torch.testing.assert_close(losses, torch.tensor([math.log(4.0)]))
    torch.testing.assert_close(logits, torch.tensor([[[math.log(3.0), 0.0]]]))
    wanted = [[[0.75 * math.log(3.0)]], [[0.75], [-0.75]], [0.75, -0.75]]
    for gradient, values in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, torch.tensor(values))
    assert len(implementation.ops.perceptrons(*call, False)[2]) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), max_size=2),
    st.integers(1, 70),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_against_autograd_in_float64(widths, hidden, rows, classes, ignored, first):
    made = make(rows, tuple(widths), tuple(hidden), classes, ignored and rows > 1)
    rectified = [first ^ (m % 2 == 1) for m in range(len(widths))]
    exact = differentiated(
        plain, [x.double() for x in made[0]], [[p.double() for p in n] for n in made[1]], made[2], rectified
    )
    with_autograd = differentiated(plain, *made, rectified)
    for name in {implementation.name for implementation in IMPLEMENTATIONS}:
        with use_backend(name):
            results = differentiated(ours, *made, rectified)
        for actual, one, other in zip(results, with_autograd, exact, strict=True):
            assert_accurate("perceptron", torch.float32, actual=actual, plain=one, exact=other)


def test_long_sums(forced):
    """Beyond the terms and columns that the kernel takes at a time."""
    made = make(rows=300, widths=(600, 257), hidden=(131,), classes=33)
    exact = differentiated(
        plain,
        [x.double() for x in made[0]],
        [[p.double() for p in n] for n in made[1]],
        made[2],
        [True, False],
    )
    with_autograd = differentiated(plain, *made, [True, False])
    for actual, one, other in zip(
        differentiated(ours, *made, [True, False]), with_autograd, exact, strict=True
    ):
        assert_accurate("perceptron", torch.float32, actual=actual, plain=one, exact=other)


def test_a_scaled_loss_scales_the_gradients(forced):
    made = make()
    once, scaled = (differentiated(ours, *made, [False, True], scale=scale) for scale in (1.0, 1024.0))
    for one, other in zip(once[2:], scaled[2:], strict=True):
        assert_same_bits(1024 * one, other)


def test_layouts_with_gaps(forced):
    inputs, networks, target = make()
    apart = (
        [x.t().contiguous().t() for x in inputs],
        [[p.repeat_interleave(2, 0)[::2] for p in n] for n in networks],
    )
    for one, other in zip(
        differentiated(ours, *apart, target.repeat_interleave(2)[::2], [True, True]),
        differentiated(ours, inputs, networks, target, [True, True]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_rows_and_nothing_counted(forced):
    for made in (make(rows=0), make(rows=3)):
        made[2].fill_(IGNORED)
        losses, _, *gradients = differentiated(ours, *made, [False, True])
        assert losses.isnan().all()
        assert all(not gradient.any() for gradient in gradients)


def test_what_is_not_finite_stays_so(forced):
    inputs, networks, target = make()
    inputs[0][3, 2] = math.nan
    losses, _, *gradients = differentiated(ours, inputs, networks, target, [True, True])
    assert losses[0].isnan()
    assert losses[1].isfinite()
    assert gradients[0].isnan().any()
    assert gradients[1].isfinite().all()


def test_classes_that_are_ruled_out_and_infinite_logits(forced):
    inputs, networks, target = make()
    networks[0][-1][3] = -math.inf
    target %= 3
    wanted = differentiated(plain, inputs, networks, target, [False, False])
    found = differentiated(ours, inputs, networks, target, [False, False])
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[2], wanted[2])
    networks[0][-1][3] = math.inf
    losses, _, *gradients = differentiated(ours, inputs, networks, target, [False, False])
    assert not losses[0].isfinite()
    assert gradients[0].isnan().all()


def test_large_logits_do_not_overflow(forced):
    inputs, networks, target = make()
    networks[0][-1] += 1e4 * torch.arange(4)
    results = differentiated(ours, inputs, networks, target, [False, False])
    assert all(result.isfinite().all() for result in results)


def test_inputs_outside_of_autograd_get_no_gradient(forced):
    inputs, networks, target = make()
    parameters = [[p.requires_grad_() for p in n] for n in networks]
    total, losses, logits = perceptrons(inputs, parameters, target, rectified=[False, False])
    total.backward()
    assert all(p.grad is not None for p in flatten(parameters))
    assert not losses.requires_grad
    assert not logits.requires_grad


def test_a_second_derivative_is_that_of_plain_operations(forced):
    def penalty(function):
        inputs, networks, target = make(rows=5)
        parameters = [[p.requires_grad_() for p in n] for n in networks]
        total = function(inputs, parameters, target, [True, False])[0].sum()
        gradients = torch.autograd.grad(total, flatten(parameters[:1]), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), flatten(parameters[:1]))

    for one, other in zip(penalty(ours), penalty(plain), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_derivative_counts_shared_parameters_and_dependent_inputs_once(forced):
    first, weight, bias = (t.requires_grad_() for t in (random(5, 4), random(3, 4), random(3)))
    inputs = [first.tanh(), 2 * first.tanh()]
    total, _, _ = perceptrons(
        inputs, [[weight, bias]] * 2, torch.tensor([0, 1, 2, 0, 1]), rectified=[False, True]
    )
    wanted = [first, weight, bias]
    once = torch.autograd.grad(total, wanted, retain_graph=True)
    for one, other in zip(torch.autograd.grad(total, wanted, create_graph=True), once, strict=True):
        torch.testing.assert_close(one, other)


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_makes_none(forced):
    inputs, networks, target = make()
    networks = [[p.requires_grad_() for p in n] for n in networks]
    Nothing.apply(ours(inputs, networks, target, [False, False])[0]).backward()
    assert all(p.grad is None for p in flatten(networks))


@pytest.mark.skipif(IMPLEMENTATIONS[-1].name != "compiled", reason="the definition leaves its sums to torch")
def test_bits_do_not_depend_on_the_number_of_threads():
    made = make(rows=64, widths=(96, 64, 32), hidden=(64,), classes=10)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(differentiated(ours, *made, [True] * 3))
    torch.set_num_threads(before)
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert_same_bits(one, another)


def test_opcheck():
    inputs, networks, target = make()
    for of_inputs in (False, True):
        opcheck(operators.perceptrons.default, (inputs, flatten(networks), [2, 2], [0, 1], target, of_inputs))


X, W, B, T = random(3, 2), random(4, 2), random(4), torch.zeros(3, dtype=torch.int64)
REFUSED = {
    "none": (([], [], [], [], T), "one entry per perceptron"),
    "layers": (([X], [W, B], [0], [0], T), "layers must be positive"),
    "count": (([X], [W], [1], [0], T), "a weight and a bias per layer"),
    "dims": (([X[0]], [W, B], [1], [0], T), r"inputs\[0\] must be a 2-dimensional"),
    "dtype": (([X], [W, B.half()], [1], [0], T), r"parameters\[1\] must be"),
    "width": (([X], [random(4, 3), B], [1], [0], T), r"a weight \[outputs, 2\]"),
    "bias": (([X], [W, random(3)], [1], [0], T), r"a bias \[outputs\]"),
    "rows": (([X, random(2, 2)], [W, B] * 2, [1, 1], [0, 0], T), "as many rows"),
    "outputs": (([X, X], [W, B, W[:3], B[:3]], [1, 1], [0, 0], T), "equally many outputs"),
    "target": (([X], [W, B], [1], [0], T[:2]), "3 class indices"),
    "indices": (([X], [W, B], [1], [0], T.int()), "3 class indices"),
    "class": (([X], [W, B], [1], [0], T + 4), r"\[0, 4\)"),
    "negative": (([X], [W, B], [1], [0], T - 1), r"\[0, 4\)"),
}


@each_implementation
@pytest.mark.parametrize("case", REFUSED)
def test_refused(implementation, case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        implementation.ops.perceptrons(*arguments, False)


def test_parameters_may_change_between_forward_and_backward(forced):
    inputs, networks, target = make()
    networks = [[p.requires_grad_() for p in n] for n in networks]
    wanted = torch.autograd.grad(ours(inputs, networks, target, [False, True])[0], flatten(networks))
    total = ours(inputs, networks, target, [False, True])[0]
    with torch.no_grad():
        networks[0][0].mul_(2)
    for one, other in zip(torch.autograd.grad(total, flatten(networks)), wanted, strict=True):
        assert_same_bits(one, other)


def test_going_backward_twice_gives_the_same(forced):
    inputs, networks, target = make()
    networks = [[p.requires_grad_() for p in n] for n in networks]
    total = ours(inputs, networks, target, [False, True])[0]
    once = [g.clone() for g in torch.autograd.grad(total, flatten(networks), retain_graph=True)]
    for one, other in zip(torch.autograd.grad(3 * total, flatten(networks)), once, strict=True):
        assert_same_bits(one, 3 * other)
