"""Adding policies: every role takes effect, and invalid combinations raise an error."""

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, ModalityDropout, NormEqualization, Policy, UnimodalLosses
from cggm.policies import AGM, DGL, OGMGE, OPM, FeaturePareto, MMPareto
from cggm.policies.plan import scale_targets
from helpers import batches, flat, plan_of, small_model, train, wrap

JUNCTION = [UnimodalLosses(), NormEqualization(), FeaturePareto(), DGL(), MMPareto()]
COEFFICIENTS = [CGGM(smoothing=0.5), OGMGE(0.4, noise=False), AGM(1.0)]


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_the_coefficient_scales_the_sum_of_both_gradients(apply):
    gradients = []
    for policy in (UnimodalLosses(), UnimodalLosses() + OGMGE(0.5, noise=False)):
        model = small_model()
        place = apply if isinstance(policy, Policy) else "auto"
        optimizer = wrap(model, torch.optim.SGD(model.parameters(), lr=1.0), policy, apply=place)
        ((inputs, target),) = batches(1)
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        before = [p.detach().clone() for p in model.encoders.parameters()]
        optimizer.step()
        steps = [b - p.detach() for b, p in zip(before, model.encoders.parameters(), strict=True)]
        gradients.append(steps)
    coefficients = optimizer.statistics["coefficients"]
    assert coefficients.min() < 0.9
    half = len(gradients[0]) // 2
    expected = [g * coefficients[0 if i < half else 1] for i, g in enumerate(gradients[0])]
    torch.testing.assert_close(gradients[1], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("junction", JUNCTION, ids=repr)
@pytest.mark.parametrize("coefficients", COEFFICIENTS[:2], ids=repr)
def test_the_order_of_adding_does_not_matter(junction, coefficients):
    results = []
    for policy in (
        junction + coefficients + ModalityDropout(0.3),
        ModalityDropout(0.3) + (coefficients + junction),
    ):
        model = small_model()
        torch.manual_seed(3)
        train(model, wrap(model, policy=policy), steps=4)
        results.append(flat(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("policy", [*JUNCTION, *COEFFICIENTS], ids=repr)
def test_dropout_composes_with_every_policy(policy):
    results = []
    for p in (None, 0.0, 0.5):
        model = small_model()
        torch.manual_seed(3)
        whole = policy if p is None else policy + ModalityDropout(p)
        train(model, wrap(model, policy=whole), steps=4)
        results.append(flat(model))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("rule", [NormEqualization(), FeaturePareto(), DGL(), MMPareto()], ids=repr)
def test_what_the_coefficients_part_wants_is_kept(rule):
    policy = rule + CGGM(lam=0.1, smoothing=0.3) + ModalityDropout(0.2)
    plan = plan_of(policy)
    assert (plan.direction.lam, plan.direction.kind, plan.dropout.p) == (0.1, "rotation", 0.2)
    assert plan.detaches_features is False
    assert plan.combines_at_parameters == (rule.combine_at == "parameters")
    expected = CGGM().scale_targets(adaptive=False)
    if rule.combine_at == "parameters":
        expected = tuple(place for place in expected if place != "feature")
    assert scale_targets(policy, adaptive=False) == expected


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        (CGGM(), OGMGE(0.3), "coefficients"),
        (CGGM(), CGGM(), "coefficients"),
        (UnimodalLosses(), NormEqualization(), "combiner"),
        (MMPareto(), FeaturePareto(), "combiner"),
        (UnimodalLosses(), AGM(1.0), "combiner"),
        (CGGM(), AGM(1.0), "coefficients"),
        (ModalityDropout(0.1), UnimodalLosses() + ModalityDropout(0.2), "dropout"),
    ],
    ids=repr,
)
def test_two_rules_for_the_same_place_are_refused(one, other, place):
    names = f"{type(one).__name__}.* both act in the same place \\({place}\\)"
    with pytest.raises(ValueError, match=names):
        one + other


def test_two_roles_read_scores_of_their_own_in_their_own_precision():
    model = small_model()
    optimizer = wrap(model, policy=CGGM.released(rho=1.0) + OPM())
    train(model, optimizer, steps=1)
    state = optimizer._state.state
    accuracies = state["scores"] * 32  # samples
    torch.testing.assert_close(accuracies, accuracies.round(), rtol=0, atol=1e-12)
    assert accuracies.dtype == torch.float64
    assert (state["dropout.rates"] > 0).sum() == 1


def test_only_policies_can_be_added():
    with pytest.raises(TypeError):
        CGGM() + 0.3
