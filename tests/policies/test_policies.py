"""The policies' arithmetic, from numbers worked by hand, without a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cggm import CGGM, Classification
from cggm.policies.cggm import paper_balance, stable_balance

SCORES = st.lists(st.floats(-3, 0, width=32), min_size=2, max_size=6)


def test_paper_balance_by_hand():
    # gains .3, .1, -.1: sum .3; (.3 - .3)/.3, (.3 - .1)/.3, (.3 + .1)/.3
    torch.testing.assert_close(
        paper_balance(torch.tensor([0.3, 0.1, -0.1])), torch.tensor([0.0, 2 / 3, 4 / 3])
    )


def test_paper_balance_is_unbounded_where_gains_cancel():
    assert paper_balance(torch.tensor([0.1, -0.0999])).abs().max() > 100


def test_stable_balance_by_hand():
    # positive gains .3, .1, 0 of sum .4: 3/2 · (1 − .75, 1 − .25, 1)
    expected = torch.tensor([0.375, 1.125, 1.5])
    torch.testing.assert_close(stable_balance(torch.tensor([0.3, 0.1, -5.0])), expected)


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=8))
def test_stable_balance_is_bounded_with_mean_one(gains):
    balance = stable_balance(torch.tensor(gains))
    modalities = len(gains)
    assert balance.min() >= -1e-6
    assert balance.max() <= modalities / (modalities - 1) + 1e-6
    assert balance.mean().item() == pytest.approx(1, abs=1e-5)


def test_stable_rule_by_hand_over_three_steps():
    policy = CGGM(rho=2.0)
    state = policy.initial_state(torch.zeros(2))
    first = policy.balance(torch.tensor([-2.0, -1.0]), state)
    torch.testing.assert_close(first.coefficients, torch.tensor([2.0, 2.0]))  # nothing to compare with yet
    second = policy.balance(torch.tensor([-1.0, -1.0]), first.state)
    # smoothed scores -2 -> -1.9 and -1 -> -1: gains .1 and 0; terms 0 and 2, smoothed .9 and 1.1
    torch.testing.assert_close(second.weights, torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(second.coefficients, torch.tensor([1.8, 2.2]))
    third = policy.balance(torch.tensor([-1.9, -0.5]), second.state)
    # smoothed scores stay at -1.9, and -1 -> -.95: gains 0 and .05; terms 2 and 0, smoothed 1.01 and .99
    torch.testing.assert_close(third.weights, torch.tensor([1.01, 0.99]))


def test_published_forms_compare_raw_scores_with_the_last_step():
    policy = CGGM.released(rho=1.3)
    state = policy.initial_state(torch.zeros(2))
    first = policy.balance(torch.tensor([0.5, 0.25]), state)  # from scores 0: gains .5, .25
    torch.testing.assert_close(first.coefficients, 1.3 * torch.tensor([1 / 3, 2 / 3]))
    second = policy.balance(torch.tensor([0.5, 0.5]), first.state)
    torch.testing.assert_close(second.weights, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_gains_that_cancel_give_the_numbers_of_the_script_to_the_last_digits():
    """Twelve samples: [1, 4, 8] right, then [2, 5, 6]. In float32 the sum of the gains is 1e-8 of rounding error."""
    policy, task = CGGM.released(rho=1.0), Classification()

    def scores(right):
        target = torch.zeros(12, dtype=torch.long)
        outputs = [F.one_hot((torch.arange(12) >= n).long(), 2).float() for n in right]
        return policy.measure(task, outputs, target)

    state = policy.balance(scores([1, 4, 8]), policy.initial_state(torch.zeros(3))).state
    found = policy.balance(scores([2, 5, 6]), state).coefficients
    gains = [2 / 12 - 1 / 12, 5 / 12 - 4 / 12, 6 / 12 - 8 / 12]
    total = sum(gains) + 1e-8
    expected = torch.tensor([(total - gain) / total for gain in gains])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("policy", [CGGM(), CGGM.paper(), CGGM.released()])
def test_a_policy_leaves_its_state_alone(policy):
    state = policy.initial_state(torch.zeros(3))
    before = {name: value.clone() for name, value in state.items()}
    policy.balance(torch.tensor([-1.0, -2.0, -0.5]), state)
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("policy", [CGGM(), CGGM.paper()])
@given(first=SCORES, data=st.data())
def test_permutation_equivariance(policy, first, data):
    second = data.draw(st.lists(st.floats(-3, 0, width=32), min_size=len(first), max_size=len(first)))
    order = torch.tensor(data.draw(st.permutations(range(len(first)))))

    def coefficients(reorder):
        state = policy.initial_state(torch.zeros(len(first)))
        for scores in (first, second):
            result = policy.balance(reorder(torch.tensor(scores)), state)
            state = result.state
        return result.coefficients

    straight, permuted = coefficients(lambda s: s), coefficients(lambda s: s[order])
    if policy == CGGM.paper():  # the denominator may cross zero: compare where the sum is well away from it
        gains = torch.tensor(second) - torch.tensor(first)
        if gains.sum().abs() < 1e-2:
            return
    torch.testing.assert_close(straight[order], permuted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", [CGGM(), CGGM.paper(), CGGM.released()])
def test_equal_scores_give_equal_coefficients(policy):
    state = policy.initial_state(torch.zeros(4))
    for score in (0.2, 0.5, 0.4):
        result = policy.balance(torch.full((4,), score), state)
        state = result.state
        torch.testing.assert_close(result.coefficients, result.coefficients[:1].expand(4))


@pytest.mark.parametrize("policy", [CGGM(), CGGM.paper()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_leaves_the_modality_as_it_was(policy, bad):
    state = policy.balance(torch.tensor([0.2, 0.1]), policy.initial_state(torch.zeros(2))).state
    result = policy.balance(torch.tensor([bad, 0.5]), state)
    for name in ("scores", "weights"):
        assert torch.equal(result.state[name][0], state[name][0])
    assert result.state["scores"][1] != state["scores"][1]
    assert torch.isfinite(result.coefficients).all()


def test_a_modality_without_a_score_in_the_first_step_gains_nothing_when_it_has_one():
    policy = CGGM()
    state = policy.balance(torch.tensor([torch.nan, -2.0]), policy.initial_state(torch.zeros(2))).state
    result = policy.balance(torch.tensor([-1.0, -2.0]), state)
    torch.testing.assert_close(result.coefficients, torch.ones(2))
    torch.testing.assert_close(result.state["scores"], torch.tensor([-1.0, -2.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho must be"),
        ({"lam": -0.1}, "lam must be"),
        ({"lam": float("nan")}, "lam must be"),
        ({"smoothing": 1.0}, "smoothing must be"),
        ({"direction": "sideways"}, "direction must be"),
        ({"score_kind": "f1"}, "score_kind must be"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CGGM(**options)


def test_policies_are_immutable():
    with pytest.raises(AttributeError):
        CGGM().rho = 2.0
