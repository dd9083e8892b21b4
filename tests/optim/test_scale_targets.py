"""Where coefficients act: the three places agree where mathematics says they must, and differ where they should."""

from dataclasses import dataclass

import pytest
import torch

from cggm import CGGM, UnimodalLosses
from cggm.optim.direction import rotate_
from cggm.policies import Coefficients, CoefficientUpdate
from cggm.policies.adaptive import is_adaptive
from helpers import backward, batches, flat, small_model, train, wrap

THREE = ("audio", "image", "text")


@dataclass(frozen=True, kw_only=True)
class Fixed(Coefficients):
    """Constant coefficients: an encoder's steps are scaled and nothing else."""

    coefficients: tuple[float, ...]

    def scale_targets(self, adaptive):
        return ("feature", "gradient", "update")

    def balance(self, scores, state):
        coefficients = scores.new_tensor(self.coefficients)
        return CoefficientUpdate(coefficients, coefficients, state)


@pytest.mark.parametrize("modalities", [("audio", "image"), THREE])
@pytest.mark.parametrize(
    "policy", [CGGM(lam=0.1), CGGM(rho=1.3, smoothing=0.5), CGGM(score_kind="metric", stable=False)]
)
def test_feature_gradient_and_update_agree_under_plain_sgd(policy, modalities):
    results = {}
    for apply in ("feature", "gradient", "update"):
        model = small_model(modalities)
        base = torch.optim.SGD(model.parameters(), lr=0.01)
        train(model, wrap(model, base, policy, apply=apply), steps=12)
        results[apply] = flat(model)
    torch.testing.assert_close(results["gradient"], results["feature"], rtol=0, atol=1e-6)
    torch.testing.assert_close(results["update"], results["feature"], rtol=0, atol=1e-6)


def travel(apply, coefficient, base_class):
    model = small_model()
    start = torch.cat([p.detach().flatten().clone() for p in model.encoders["audio"].parameters()])
    base = base_class(model.parameters(), lr=0.01, weight_decay=0.0)
    train(model, wrap(model, base, Fixed(coefficients=(coefficient, 1.0)), apply=apply), steps=1)
    return torch.cat([p.detach().flatten() for p in model.encoders["audio"].parameters()]) - start


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_sgd_feels_a_coefficient_everywhere(apply):
    full, tenth = travel(apply, 1.0, torch.optim.SGD), travel(apply, 0.1, torch.optim.SGD)
    torch.testing.assert_close(tenth, 0.1 * full, rtol=1e-3, atol=1e-7)


def test_adam_undoes_a_coefficient_on_the_gradient_but_not_on_the_update():
    full = travel("gradient", 1.0, torch.optim.AdamW)
    torch.testing.assert_close(travel("gradient", 0.1, torch.optim.AdamW), full, rtol=2e-2, atol=2e-4)
    torch.testing.assert_close(travel("update", 0.1, torch.optim.AdamW), 0.1 * full, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("base", "policy", "expected"),
    [
        (torch.optim.SGD, CGGM(), "feature"),
        (torch.optim.AdamW, CGGM(), "update"),
        (torch.optim.RMSprop, CGGM(), "update"),
        (torch.optim.Adam, CGGM.released(), "gradient"),
        (torch.optim.SGD, CGGM.paper(), "gradient"),
        (torch.optim.Adam, UnimodalLosses(), None),
    ],
)
def test_auto(base, policy, expected):
    model = small_model()
    assert wrap(model, base(model.parameters(), lr=0.1), policy).scale_target == expected


def test_a_place_where_a_policy_cannot_act_is_refused():
    with pytest.raises(
        ValueError, match=r"apply must be 'auto' or one of \('feature',\) with UnimodalLosses"
    ):
        wrap(small_model(), policy=UnimodalLosses(), apply="gradient")


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_statistics_of_a_step(apply):
    model = small_model()
    optimizer = wrap(model, policy=CGGM(), apply=apply)
    train(model, optimizer, steps=3)
    statistics = optimizer.statistics
    expected = {"scores", "coefficients", "cosines", "grad_norms", "loss", "unimodal_losses", "skipped"}
    assert set(statistics) == expected
    assert all(v.shape == (() if name == "loss" else (2,)) for name, v in statistics.items())
    head = model.head.weight.grad.flatten()
    classifiers = model.unimodal_classifiers
    expected = [
        torch.cosine_similarity(head, getattr(classifiers, m).output.weight.grad.flatten(), 0)
        for m in model.modalities
    ]
    torch.testing.assert_close(statistics["cosines"], torch.stack(expected), rtol=1e-5, atol=1e-6)
    norms = [
        torch.cat([p.grad.flatten() for p in model.encoders[m].parameters()]).norm() for m in model.modalities
    ]
    # Folded into the step, the coefficients multiply what the optimizer reads, and not what .grad holds.
    folded = apply == "gradient" and optimizer.uses_fused_step
    factors = statistics["coefficients"] if folded else torch.ones(2)
    torch.testing.assert_close(statistics["grad_norms"], factors * torch.stack(norms), rtol=1e-5, atol=1e-7)


@dataclass(frozen=True, kw_only=True)
class Remembering(Coefficients):
    """Keeps the scores themselves as its state."""

    def balance(self, scores, state):
        ones = torch.ones_like(scores)
        return CoefficientUpdate(ones, ones, {"last": scores})


def test_statistics_that_were_kept_do_not_change_later():
    model = small_model()
    optimizer = wrap(model, policy=Remembering())
    train(model, optimizer, steps=1)
    kept = optimizer.statistics["scores"]
    before = kept.clone()
    train(model, optimizer, steps=2)
    assert torch.equal(kept, before)


@dataclass(frozen=True, kw_only=True)
class LookingBack(Coefficients):
    """Keeps the scores of two steps, the one tensor under both names."""

    def balance(self, scores, state):
        ones = torch.ones_like(scores)
        return CoefficientUpdate(ones, ones, {"last": scores, "before": state.get("last", scores)})


def test_a_state_may_move_from_one_name_to_another():
    model = small_model()
    optimizer = wrap(model, policy=LookingBack())
    for _ in range(3):
        before = optimizer.statistics["scores"] if optimizer._state.state else None
        train(model, optimizer, steps=1)
    assert torch.equal(optimizer._state.state["last"], optimizer.statistics["scores"])
    assert torch.equal(optimizer._state.state["before"], before)


def test_statistics_before_the_first_step_say_so():
    with pytest.raises(KeyError, match="no balanced step"):
        wrap(small_model()).statistics["scores"]


def test_rotation_by_hand():
    # g = (2, 0), u = (0, 3): cosine 0, so g turns by λ ‖g‖ B u/‖u‖ = .5 · 2 · 1.5 · (0, 1)
    gradient = torch.tensor([[2.0, 0.0]])
    rotate_(gradient, [torch.tensor([[0.0, 3.0]])], torch.tensor([0.0]), torch.tensor([1.5]), lam=0.5)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 1.5]]))


def test_rotation_adds_only_what_is_at_right_angles():
    torch.manual_seed(0)
    gradient, unimodal = torch.randn(4, 5), [torch.randn(4, 5), torch.randn(4, 5), torch.zeros(4, 5)]
    cosines = torch.stack([torch.cosine_similarity(gradient.flatten(), u.flatten(), 0) for u in unimodal])
    turned = gradient.clone()
    rotate_(turned, unimodal, cosines, torch.tensor([1.2, 0.8, 1.0]), lam=0.3)
    assert ((turned - gradient) * gradient).sum().abs() < 1e-5
    assert (turned - gradient).norm() > 0.1


def test_rotation_does_not_depend_on_the_loss_scale():
    results = []
    for scale in (1.0, 1024.0):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(lam=0.2))
        for inputs, target in batches(1):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(*inputs), target)
            (optimizer.balance(loss, target) * scale).backward()
            optimizer.modulate()
            results.append(model.head.weight.grad / scale)
    torch.testing.assert_close(results[0], results[1])


def test_modulate_is_idempotent_and_step_does_not_repeat_it():
    model = small_model()
    optimizer = wrap(model, policy=Fixed(coefficients=(0.5, 2.0)), apply="gradient")
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    before = [p.grad.clone() for p in model.encoders["audio"].parameters()]
    optimizer.modulate()
    optimizer.modulate()
    after = [p.grad.clone() for p in model.encoders["audio"].parameters()]
    torch.testing.assert_close(after, [0.5 * g for g in before])
    optimizer.step()
    torch.testing.assert_close([p.grad for p in model.encoders["audio"].parameters()], after)


def test_without_balance_a_step_is_the_plain_one():
    results = []
    for wrapped in (False, True):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = wrap(model, optimizer) if wrapped else optimizer
        for inputs, target in batches(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(*inputs), target).backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


def test_cosines_are_those_of_before_a_step_that_writes_into_gradients():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    optimizer = wrap(model, base, CGGM())
    torch.optim.lr_scheduler.StepLR(base, 10)  # on the base: its own step is taken
    for inputs, target in batches(3):
        optimizer.zero_grad()
        backward(model, optimizer, inputs, target)
        unimodal = [classifier.output.weight.grad for classifier in model.unimodal_classifiers.children()]
        expected = [
            torch.cosine_similarity(model.head.weight.grad.flatten(), u.flatten(), 0) for u in unimodal
        ]
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        torch.testing.assert_close(optimizer.statistics["cosines"], torch.stack(expected))


@pytest.mark.filterwarnings("ignore:encoder .* is frozen")
def test_update_with_frozen_encoders_and_nothing_balanced():
    model = small_model()
    model.encoders.requires_grad_(False)
    optimizer = wrap(model, apply="update")
    inputs, target = next(batches(1))
    before = flat(model)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(*inputs), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(flat(model), before)


def test_an_optimizer_around_another_is_linear_where_that_one_is():
    parameters = [torch.nn.Parameter(torch.ones(1))]

    def around(optimizer, name="optimizer"):
        outer = object.__new__(torch.optim.Optimizer)
        setattr(outer, name, optimizer)
        return outer

    sgd, adam = torch.optim.SGD(parameters, lr=0.1), torch.optim.Adam(parameters)
    assert not is_adaptive(around(sgd))
    assert not is_adaptive(around(around(sgd, "base"), "base_optimizer"))
    assert is_adaptive(around(adam))
