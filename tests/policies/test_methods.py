"""The methods' arithmetic from numbers worked by hand, and what holds for every one of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cggm import CGGM, Classification, ModalityDropout, NormEqualization, UnimodalLosses
from cggm.junctions.features import make_junctions
from cggm.model.shapley import coalitions
from cggm.optim.step_state import StepState
from cggm.policies import AGM, DGL, MIMO, MLB, OGMGE, OPM, SMP, FeaturePareto, Joint, MMPareto
from cggm.policies.mmpareto import pareto_weight
from helpers import plan_of

SCORES = st.lists(st.floats(2**-6, 1, width=32), min_size=2, max_size=6)
POLICIES = [
    OGMGE(0.5),
    AGM(1.0),
    MLB(0.8, 3.0),
    UnimodalLosses() + CGGM(),
    UnimodalLosses() + MIMO(),
    Joint(),
    ModalityDropout(0.2),
    OPM(),
]
RULES = [UnimodalLosses(weight=2.0), NormEqualization(), FeaturePareto(), DGL(), DGL(weight=4.0)]


def test_ogm_of_two_modalities_by_hand():
    # ratios .6 / .2 = 3 and 1/3: 1 − tanh(.3 · 3) and 1
    coefficients = OGMGE(0.3).balance(torch.tensor([0.6, 0.2]), {}).coefficients
    torch.testing.assert_close(coefficients, torch.tensor([1 - math.tanh(0.9), 1.0]))


def test_ogm_of_three_modalities_compares_with_the_mean_of_the_others():
    # .6 / .3 = 2, .4 / .4 = 1, .2 / .5 = .4: only the first is ahead
    coefficients = OGMGE(0.3).balance(torch.tensor([0.6, 0.4, 0.2]), {}).coefficients
    torch.testing.assert_close(coefficients, torch.tensor([1 - math.tanh(0.6), 1.0, 1.0]))


def test_mlb_by_hand():
    # s = .6, .3: r = .5 and 2; s = .6, .4, .2: r = .5, 1 and 2.5
    two = MLB(1.0, beta_max=3.0).balance(torch.tensor([0.6, 0.3]), {}).coefficients
    torch.testing.assert_close(two, torch.tensor([1 + math.tanh(-0.5), 1 + 2 * math.tanh(1.0)]))
    three = MLB(0.8).balance(torch.tensor([0.6, 0.4, 0.2]), {}).coefficients
    torch.testing.assert_close(three, torch.tensor([1 + math.tanh(-0.4), 1.0, 1 + math.tanh(1.2)]))


@given(SCORES)
def test_mlb_stays_within_its_bounds(scores):
    coefficients = MLB(0.8, beta_max=3.0).balance(torch.tensor(scores), {}).coefficients
    assert coefficients.min() >= 1 - math.tanh(0.8)
    assert coefficients.max() <= 3


def test_mimo_by_hand_over_three_steps():
    policy = MIMO(lam=10.0, mu=0.5)
    first = policy.balance(-torch.tensor([1.0, 2.0]), policy.initial_state(torch.zeros(2)))
    torch.testing.assert_close(first.unimodal_weights, torch.tensor([5.0, 5.0]))  # nobody lags yet
    second = policy.balance(-torch.tensor([1.5, 1.8]), first.state)  # lags .5 and 0: softmax of 1 and 0
    expected = 10 * torch.tensor([math.e / (math.e + 1), 1 / (math.e + 1)])
    torch.testing.assert_close(second.unimodal_weights, expected)
    torch.testing.assert_close(second.state["best"], torch.tensor([1.0, 1.8]))
    assert second.coefficients.tolist() == [1, 1]
    known = MIMO(lam=10.0, mu=0.5, optimum=(1.0, 1.8)).balance(-torch.tensor([1.5, 1.8]), {})
    torch.testing.assert_close(known.unimodal_weights, expected)
    with pytest.raises(ValueError, match=r"optimum must have one loss per modality, 3 here"):
        MIMO(optimum=(1.0, 1.8)).balance(torch.zeros(3), {})


def test_opm_by_hand():
    def rates(policy, scores):
        return policy.update(torch.tensor(scores), {"rates": torch.tensor([0.1] * len(scores))})["rates"]

    # .6 / .3 = 2: .5 (1 + .5 tanh(1)), and nothing for who lags or where both are equal
    torch.testing.assert_close(
        rates(OPM(0.5, 0.5), [0.6, 0.3]), torch.tensor([0.5 + 0.25 * math.tanh(1.0), 0])
    )
    assert rates(OPM(0.5, 0.5), [0.3, 0.3]).tolist() == [0, 0]
    assert rates(OPM(0.9, 5.0), [0.9, 0.1]).tolist() == [1, 0]
    # means of the ratios (3 + 1.5) / 2, (2 + 2/3) / 2 and (1/3 + .5) / 2: rates .67 and .54 are scaled down
    one, other = (0.4 * (1 + math.tanh(r - 1)) for r in (2.25, 4 / 3))
    expected = torch.tensor([one, other, 0.0]) / (one + other)
    torch.testing.assert_close(rates(OPM(0.4, 1.0), [0.6, 0.4, 0.2]), expected)
    assert torch.equal(rates(OPM(), [math.nan, 0.3]), torch.tensor([0.1, 0.1]))


def coefficients_over_steps(policy, scores):
    state, found = policy.initial_state(torch.zeros(len(scores[0]))), []
    for row in scores:
        update = policy.balance(torch.tensor(row), state)
        state = update.state
        found.append([int(c) for c in update.coefficients])
    return found


def test_smp_by_hand():
    policy = SMP(stage_steps=3, epoch_steps=2)
    scores = [
        [0.6, 0.4, 0.5],  # the second is weakest
        [0.1, 0.4, 0.5],  # over both steps .7, .8, 1.0: the first is
        [0.9, 0.1, 0.1],  # the last epoch counts: the first still is
        [0.9, 0.1, 0.2],  # second stage: the two weakest of that epoch
        [0.9, 0.1, 0.1],  # over steps 3 and 4 1.8, .2, .3: the second and the third
        [0.1, 0.9, 0.9],
        [0.1, 0.9, 0.9],  # third stage
        [0.1, 0.9, 0.9],
    ]
    expected = [[0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert coefficients_over_steps(policy, scores) == expected


def test_smp_leaves_scores_that_are_not_finite_out():
    scores = [[0.6, 0.4], [math.nan, 0.9], [0.6, 0.4]]
    assert coefficients_over_steps(SMP(stage_steps=9, epoch_steps=9), scores) == [[0, 1]] * 3


def test_agm_by_hand_over_two_steps():
    policy = AGM(0.5)
    first = policy.balance(torch.tensor([-1.0, -2.0]), policy.initial_state(torch.zeros(2)))
    # mean 1.5: r = exp(1), exp(-1); no past: q = 1
    expected = torch.tensor([math.exp(0.5 * (1 - math.e)), math.exp(0.5 * (1 - 1 / math.e))])
    torch.testing.assert_close(first.coefficients, expected)
    second = policy.balance(torch.tensor([-2.0, -2.0]), first.state)
    # now r = 1 and q = exp(1), exp(-1)
    expected = torch.tensor([math.exp(0.5 * (math.e - 1)), math.exp(0.5 * (1 / math.e - 1))])
    torch.testing.assert_close(second.coefficients, expected)
    torch.testing.assert_close(second.state["means"], torch.tensor([1.5, 2.0]))


def test_agm_of_three_modalities_has_the_exponent_of_the_authors_script():
    policy = AGM(1.0)
    update = policy.balance(-torch.tensor([0.5, 1.0, 1.5]), policy.initial_state(torch.zeros(3)))
    # r = exp(3/2 · (1 − s)) = 2.117, 1, .472, q = 1, and coefficients exp(1 − r)
    torch.testing.assert_close(update.coefficients, torch.tensor([0.3273, 1.0, 1.6949]), rtol=0, atol=1e-4)


def test_shapley_weights_of_two_and_three_by_hand():
    assert coalitions(2)[1] == [[0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]]
    asked, weights = coalitions(3)
    assert asked == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    # m_0 = ⅓ v(0) + ⅙ (v(01) − v(1)) + ⅙ (v(02) − v(2)) + ⅓ (v(012) − v(12))
    expected = [1 / 3, -1 / 6, -1 / 6, 1 / 6, 1 / 6, -1 / 3, 1 / 3]
    assert weights[0] == pytest.approx(expected)


@pytest.mark.parametrize("modalities", range(2, 9))
def test_shares_add_up_to_the_whole_and_a_modality_alone_gets_what_it_adds(modalities):
    torch.manual_seed(0)
    asked, weights = coalitions(modalities, permutations=3)
    worth = torch.randn(modalities).tolist()
    additive = [sum(worth[i] for i in coalition) for coalition in asked]
    shares = torch.tensor(weights) @ torch.tensor(additive)
    torch.testing.assert_close(shares, torch.tensor(worth), rtol=1e-4, atol=1e-5)
    total = torch.tensor(weights).sum(0)
    torch.testing.assert_close(total, torch.tensor([0.0] * (len(asked) - 1) + [1.0]), rtol=0, atol=1e-6)
    assert len(asked) == (2**modalities - 1 if modalities <= 4 else len(set(asked)))


def test_sampled_shapley_values_come_near_the_exact_ones():
    torch.manual_seed(0)
    values = {(): 0.0}

    def value(coalition):  # pairs add something of their own
        return sum(coalition) + sum(0.3 for i in coalition for j in coalition if i < j)

    asked, weights = coalitions(5, permutations=50)
    shares = torch.tensor(weights) @ torch.tensor([float(value(c)) for c in asked])
    torch.testing.assert_close(shares, torch.tensor([i + 0.6 for i in range(5)]), rtol=0, atol=0.05)
    assert values[()] == 0.0


def test_pareto_weights_by_hand():
    def weight(x, y, z):
        return pareto_weight(*torch.tensor([x, y, z], dtype=torch.float64)).item()

    assert weight(1.0, 0.5, 4.0) == 0.5  # they agree
    assert weight(1.0, -1.0, 3.0) == pytest.approx(4 / 6)  # (3 + 1) / (1 + 3 + 2)
    assert weight(2.0, 0.0, 2.0) == pytest.approx(0.5)  # at right angles: z / (x + z)
    assert weight(2.0, 0.0, 0.0) == 0.001  # no unimodal gradient
    assert weight(0.0, 0.0, 2.0) == 0.999


def test_mmpareto_by_hand():
    # g_m = (1, 0 | 0), g_u = (-2, 0 | 1) in two tensors: x = 1, y = -2, z = 5, w_m = (5 + 2) / (1 + 5 + 4) = .7
    gram = torch.tensor([[[1.0, -2.0], [-2.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    weights = MMPareto(gamma=1.5).combination_weights(gram)
    # first tensor: h = 1.4 - 1.2 = .2, raised to |1 - 2| = 1; second: h = .6, raised to 1
    expected = 1.5 * torch.tensor([[1.4 / 0.2, 0.6 / 0.2], [1.4 / 0.6, 0.6 / 0.6]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


def test_mmpareto_sums_gradients_that_agree():
    gram = torch.tensor([[[1.0, 0.5], [0.5, 4.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        MMPareto(gamma=1.5).combination_weights(gram), torch.full((1, 2), 1.5, dtype=torch.float64)
    )


def test_exactly_opposed_gradients_stay_finite():
    gram = torch.tensor([[[1.0, -2.0], [-2.0, 4.0]]], dtype=torch.float64)  # g_u = −2 g_m
    assert torch.isfinite(MMPareto().combination_weights(gram)).all()
    assert torch.isfinite(MMPareto().combination_weights(torch.zeros(3, 2, 2, dtype=torch.float64))).all()
    g = torch.randn(4, 3)
    assert torch.isfinite(FeaturePareto().combine(g, -2 * g)).all()


def test_feature_pareto_is_mmpareto_of_one_tensor():
    torch.manual_seed(0)
    for sign in (1, -1):
        shared = torch.randn(6, 4)
        m, u = torch.randn(6, 4) + shared, torch.randn(6, 4) + sign * shared
        gram = torch.stack([m.flatten(), u.flatten()]).double()
        weights = MMPareto(1.5).combination_weights((gram @ gram.T)[None])[0].float()
        torch.testing.assert_close(FeaturePareto(1.5).combine(m, u), weights[0] * m + weights[1] * u)


def test_norm_equalization_by_hand():
    m, u = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 6.0], [8.0, 0.0]])
    # norms 5 and 10: g = 10 (m / 5 + u / 10)
    expected = torch.tensor([[6.0, 6.0], [8.0, 8.0]])
    torch.testing.assert_close(NormEqualization().combine(m, u), expected)
    torch.testing.assert_close(NormEqualization().combine(torch.zeros_like(u), u), u)
    torch.testing.assert_close(NormEqualization().combine(m, torch.zeros_like(m)), m)


@pytest.mark.parametrize("rule", [NormEqualization(), FeaturePareto(gamma=1.0)], ids=repr)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_zero_gradient_counts_as_nothing_at_any_scale(rule, scale):
    torch.manual_seed(0)
    g = scale * torch.randn(4, 3)
    torch.testing.assert_close(rule.combine(g, 0 * g), g, rtol=2e-3, atol=0)  # Pareto weighs it 0.001
    torch.testing.assert_close(rule.combine(0 * g, g), g, rtol=2e-3, atol=0)
    assert torch.equal(rule.combine(0 * g, 0 * g), torch.zeros(4, 3))


@pytest.mark.parametrize("rule", [NormEqualization(), FeaturePareto()], ids=repr)
def test_rules_are_differentiable_themselves(rule):
    torch.manual_seed(0)
    gradients = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 3).double().requires_grad_()
    torch.autograd.gradcheck(rule.combine, gradients)


def test_dgl_keeps_the_unimodal_gradient_alone():
    m, u = torch.randn(3, 2), torch.randn(3, 2)
    assert DGL().combine(m, u) is u
    assert torch.equal(DGL(weight=4.0).combine(m, u), 4 * u)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_follow_the_scale_of_the_loss_and_let_overflow_through(rule):
    torch.manual_seed(0)
    m, u = torch.randn(8, 4), torch.randn(8, 4)
    torch.testing.assert_close(rule.combine(1024 * m, 1024 * u), 1024 * rule.combine(m, u))
    (junction,) = make_junctions(plan_of(rule), ["audio"])
    assert junction.backward(m, None) is m  # the classifier has seen detached features
    spoiled = u.clone()
    spoiled[0, 0] = torch.inf
    assert not torch.isfinite(rule.combine(m, spoiled)).all()


@pytest.mark.parametrize("rule", [NormEqualization(), FeaturePareto()], ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_rules_in_half_precision(rule, scale):
    torch.manual_seed(0)
    m, u = torch.randn(32, 16), torch.randn(32, 16)  # norms of 1e3 · 22 squared do not fit into float16
    half = rule.combine((scale * m).half(), (scale * 1e-1 * u).half())
    exact = rule.combine((scale * m).half().double(), (scale * 1e-1 * u).half().double())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), exact, rtol=2e-3, atol=1e-7)


def run(policy, steps):
    """The state of training after steps with these scores, the last of them still to be taken."""
    state = StepState(plan_of(policy), lambda update: None)
    for number, scores in enumerate(steps, 1):
        state.mark_backward(state.add(scores[None], 1))
        if number < len(steps):
            state.prepared_commit()()
    return state


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(first=SCORES, data=st.data())
def test_permutation_equivariance(policy, first, data):
    second = data.draw(st.lists(st.floats(2**-6, 1, width=32), min_size=len(first), max_size=len(first)))
    order = torch.tensor(data.draw(st.permutations(range(len(first)))))
    steps = [torch.tensor(first), torch.tensor(second)]
    others = (steps[1].sum() - steps[1]) / (len(first) - 1)
    if ((steps[1] / others - 1).abs() < 1e-4).any():  # OGM's step at a ratio of 1: rounding decides
        return
    straight = run(policy, steps).update.coefficients
    permuted = run(policy, [scores[order] for scores in steps]).update.coefficients
    torch.testing.assert_close(straight[order], permuted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("modalities", [2, 3, 7])
def test_equal_scores_give_equal_coefficients(policy, modalities):
    for score in (0.1, 1 / 3, 0.9):
        coefficients = run(policy, [torch.full((modalities,), score)] * 3).update.coefficients
        torch.testing.assert_close(coefficients, torch.ones(modalities))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_changes_nothing_of_its_modality(policy, bad):
    training = run(policy, [torch.tensor([0.5, 0.2]), torch.tensor([bad, 0.5])])
    update, state = training.update, training.state
    assert torch.isfinite(update.coefficients).all()
    own = [(update.state[name], state[name]) for name in state if state[name].ndim]
    assert all(torch.equal(new[0], old[0]) for new, old in own)
    assert all(torch.isfinite(new).all() for new, _ in own)


def test_confidence_of_a_class():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = torch.tensor([0.75, 0.5])
    task = Classification()
    torch.testing.assert_close(task.confidence(logits, torch.tensor([1, 0])), expected)
    soft = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(task.confidence(logits, soft), expected)
    measured = OGMGE(0.3).measure(task, [logits, -logits], torch.tensor([1, 0]))
    torch.testing.assert_close(measured, torch.tensor([0.625, 0.375]))
    assert torch.equal(MLB().measure(task, [logits, -logits], torch.tensor([1, 0])), measured)
    measured = AGM(1.0).measure(task, [logits], torch.tensor([1, 0]))
    torch.testing.assert_close(measured, torch.tensor([(math.log(0.75) + math.log(0.5)) / 2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OGMGE(-0.1), "alpha must be"),
        (lambda: AGM(float("nan")), "alpha must be"),
        (lambda: AGM(1.0, permutations=0), "permutations must be"),
        (lambda: MMPareto(-1.0), "gamma must be"),
        (lambda: FeaturePareto(-1.0), "gamma must be"),
        (lambda: ModalityDropout(1.5), "p must be"),
        (lambda: OPM(1.5), "q must be"),
        (lambda: OPM(0.5, -1.0), "lam must be"),
        (lambda: MLB(-1.0), "alpha must be"),
        (lambda: MLB(beta_max=0.5), "beta_max must be"),
        (lambda: MIMO(-1.0), "lam must be"),
        (lambda: MIMO(mu=0.0), "mu must be"),
        (lambda: MIMO(optimum=(0.1, -1.0)), r"optimum\[1\] must be"),
        (lambda: SMP(stage_steps=0, epoch_steps=1), "stage_steps must be"),
        (lambda: SMP(stage_steps=1, epoch_steps=1.5), "epoch_steps must be"),
        (lambda: DGL(weight=-1.0), "weight must be"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
