"""Invalid use raises an error that names the argument and the fix, and changes nothing."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, Classification, ClassifierScores, Encoder, Regression
from cggm.policies import AGM, OGMGE, TCMax
from cggm.tasks import find_task
from helpers import backward, batches, flat, small_model, wrap


def untouched(model):
    return not hasattr(model, "unimodal_classifiers") and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoders": {"audio": "encoders.audio"}}, ValueError, "at least two modality names"),
        ({"encoders": ["encoders.audio", "encoders.image"]}, ValueError, "encoders must map at least two"),
        (
            {"encoders": {"audio": "encoders.audoi", "image": "encoders.image"}},
            ValueError,
            r"encoders\['audio'\]: the model has no submodule 'encoders.audoi'; did you mean one of \['encoders.audio'",
        ),
        (
            {"encoders": {"audio": 3, "image": "encoders.image"}},
            TypeError,
            "dotted submodule name or a module, got int",
        ),
        ({"encoders": {"audio": nn.Linear(1, 1), "image": "encoders.image"}}, ValueError, "not a submodule"),
        ({"encoders": {"a.b": "encoders.audio", "image": "encoders.image"}}, ValueError, "'a.b' cannot name"),
        (
            {"encoders": {"float": "encoders.audio", "image": "encoders.image"}},
            ValueError,
            "'float' cannot name",
        ),
        (
            {"head": "hed"},
            ValueError,
            r"head: the model has no submodule 'hed'; did you mean one of \['head'",
        ),
        ({"head": "encoders"}, ValueError, "no default classifier for a head of type ModuleDict"),
        (
            {"head": "encoders", "policy": CGGM(lam=0.1)},
            ValueError,
            "head: 'encoders' is a ModuleDict without a weight matrix",
        ),
        (
            {"head": None},
            ValueError,
            r"encoders\['audio'\]: .* made like the head, and head is None: pass Encoder",
        ),
        (
            {"head": None, "policy": CGGM(lam=0.1)},
            ValueError,
            r"head: CGGM\(lam > 0\) turns the head's gradient",
        ),
        ({"head": None, "policy": CGGM.paper()}, ValueError, r"head: CGGM\(lam > 0\) turns"),
        ({"head": None, "policy": CGGM.released()}, ValueError, r"head: CGGM\(lam > 0\) turns"),
        (
            {"head": None, "policy": OGMGE(split_head=True)},
            ValueError,
            r"head: OGMGE\(split_head=True\) splits",
        ),
        ({"head": None, "policy": AGM()}, ValueError, r"head: AGM\(\) runs the fusion again, up to the head"),
        ({"head": None, "policy": TCMax()}, ValueError, r"head: TCMax\(\) runs the fusion again"),
        ({"policy": "cggm"}, TypeError, r"policy must be a cggm Policy or role such as CGGM\(\), got str"),
        ({"task": "translation"}, ValueError, r"task must be one of \['classification', 'regression'"),
        ({"task": 7}, TypeError, "two functions loss and score"),
        ({"apply": "everywhere"}, ValueError, "apply must be 'auto' or one of"),
        (
            {"classifiers": "deep"},
            TypeError,
            "classifier must be a module, .*, 'attention', 'fusion' or None, got 'deep'",
        ),
        (
            {"classifiers": {"audio": nn.Linear(4, 3)}, "policy": CGGM(lam=0.1)},
            ValueError,
            r"encoders\['audio'\]: its classifier has no output layer whose weight has the head's shape \[3, 8\]",
        ),
        (
            {"classifiers": {"audio": (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), "0")}},
            ValueError,
            "no output layer",
        ),
    ],
)
def test_a_constructor_that_cannot_work(options, error, message):
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        wrap(model, base, **options)
    assert untouched(model)
    assert len(base.param_groups) == 1


def test_a_parameter_shared_between_two_encoders():
    model = small_model()
    model.encoders["image"][2] = model.encoders["audio"][2]
    with pytest.raises(
        ValueError, match=r"encoders.audio.2.weight of encoder 'audio' is also encoders.image.2.weight of"
    ):
        wrap(model)
    assert untouched(model)


@pytest.mark.parametrize("inner", ["encoders.audio", "encoders"])
@pytest.mark.parametrize("shared", ["refuse", "leave"])
def test_overlapping_encoders(inner, shared):
    with pytest.raises(ValueError, match="encoders 'all' and 'audio' overlap"):
        wrap(small_model(), encoders={"all": "encoders", "audio": Encoder(inner, shared=shared)})


def test_a_head_for_which_no_default_classifier_is_known():
    model = small_model()
    model.head = nn.Bilinear(8, 1, 3)
    with pytest.raises(ValueError, match="no default classifier for a head of type Bilinear"):
        wrap(model)


def test_a_model_that_iterates_over_its_children():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    from cggm import CGGMOptimizerWrapper

    with pytest.raises(TypeError, match="model is an Sequential, whose own children"):
        CGGMOptimizerWrapper(base, model, encoders={"a": "0", "b": "1"}, head="2")


def test_a_model_wrapped_twice():
    model = small_model()
    _optimizer = wrap(model)
    with pytest.raises(ValueError, match=r"call detach\(\) on its former wrapper"):
        wrap(model)


def test_a_frozen_encoder_is_allowed_left_out_and_said_once():
    model = small_model()
    model.encoders["audio"].requires_grad_(False)
    with pytest.warns(
        UserWarning, match="encoder 'audio' is frozen or has no parameters of its own"
    ) as caught:
        optimizer = wrap(model, policy=CGGM(smoothing=0.3))
    assert len(caught) == 1
    frozen, trained = flat(model.encoders["audio"]), flat(model.encoders["image"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inputs, target in batches(3):
            optimizer.zero_grad()
            backward(model, optimizer, inputs, target)
            optimizer.step()
    assert torch.equal(flat(model.encoders["audio"]), frozen)
    assert not torch.equal(flat(model.encoders["image"]), trained)


@pytest.fixture
def ready():
    model = small_model()
    optimizer = wrap(model, policy=CGGM(smoothing=0.3))
    ((inputs, target),) = batches(1)
    return model, optimizer, inputs, target


def test_balance_without_a_forward(ready):
    model, optimizer, _, target = ready
    with pytest.raises(
        RuntimeError, match=r"no features of \['audio', 'image'\]: call it once after each forward"
    ):
        optimizer.balance(model.head.weight.sum(), target)


def test_balance_twice_for_one_forward(ready):
    model, optimizer, inputs, target = ready
    loss = F.cross_entropy(model(*inputs), target)
    optimizer.balance(loss, target)
    with pytest.raises(RuntimeError, match="no features"):
        optimizer.balance(loss, target)


def test_balance_under_no_grad(ready):
    model, optimizer, inputs, target = ready
    loss = F.cross_entropy(model(*inputs), target)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch.no_grad\(\)"):
        optimizer.balance(loss, target)


def test_balance_of_a_loss_per_sample(ready):
    model, optimizer, inputs, target = ready
    with pytest.raises(ValueError, match=r"loss must be 0-dimensional.*got \[32\]"):
        optimizer.balance(F.cross_entropy(model(*inputs), target, reduction="none"), target)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:5], r"the classifier's output is \[32, 3\], the target \[5\]"),
        (lambda t: t.float(), r"class indices \[32\] \(int64 or uint8\) or class probabilities \[32, 3\]"),
        (lambda t: t[:, None], r"got \[32, 1\] of torch.int64"),
        (lambda t: t.sum(), r"the target \[\]"),
    ],
)
def test_a_target_of_the_wrong_shape_leaves_all_as_it_was(ready, spoil, message):
    model, optimizer, inputs, target = ready
    loss = F.cross_entropy(model(*inputs), target)
    with pytest.raises(ValueError, match=message):
        optimizer.balance(loss, spoil(target))
    optimizer.balance(loss, target).backward()  # the forward pass is still there
    optimizer.step()


def test_step_before_backward(ready):
    model, optimizer, inputs, target = ready
    before = copy.deepcopy(flat(model))
    optimizer.balance(F.cross_entropy(model(*inputs), target), target)
    with pytest.raises(RuntimeError, match=r"a balanced loss is pending, but the encoders have no gradients"):
        optimizer.step()
    assert torch.equal(flat(model), before)


def test_step_after_clearing_what_went_backward_by_hand(ready):
    model, optimizer, inputs, target = ready
    backward(model, optimizer, inputs, target)
    for parameter in model.parameters():
        parameter.grad = None
    with pytest.raises(RuntimeError, match="the encoders have no gradients"):
        optimizer.step()


def test_regression_targets():
    task = Regression(kind="mse")
    assert task.loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])).item() == pytest.approx(2.5)
    assert task.score(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])).item() == pytest.approx(-1.5)
    with pytest.raises(ValueError, match="as many elements"):
        task.loss(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="kind must be"):
        Regression(kind="huber")


def test_classification_with_probabilities():
    task = Classification()
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert task.score(logits, soft).item() == 0.5
    torch.testing.assert_close(task.loss(logits, soft), F.cross_entropy(logits, soft.argmax(1)))


def test_a_task_of_ones_own():
    class Ranking:
        def loss(self, output, target):
            return F.multi_margin_loss(output, target)

        def score(self, output, target):
            return output.gather(1, target[:, None]).mean()

    task = Ranking()
    assert find_task(task) is task
    model = small_model()
    optimizer = wrap(model, task=task, policy=CGGM(score_kind="metric"))
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    optimizer.step()
    assert optimizer.statistics["scores"].shape == (2,)


@pytest.mark.parametrize("head", ["encoders.audio.2", "encoders.audio"])
def test_a_head_inside_an_encoder_is_refused(head):
    with pytest.raises(
        ValueError, match=r"head: '.*' belongs to encoder 'audio' .* has to come after the fusion"
    ):
        wrap(small_model(), head=head)


def test_weights_that_an_encoder_shares_with_the_fusion_are_refused():
    model = small_model()
    model.fusion.bias = None
    model.encoders["audio"][2].tied = nn.Linear(8, 8)
    model.fusion.weight = model.encoders["audio"][2].tied.weight
    with pytest.raises(
        ValueError,
        match=r"encoders.audio.2.tied.weight of encoder 'audio' is also fusion.weight of the rest of the model",
    ):
        wrap(model)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "0.1"])
def test_a_learning_rate_of_the_classifiers_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match=r"lr must be a number in \[0, inf\)"):
        ClassifierScores(lr=value)


@pytest.mark.parametrize("value", ["off", 0, None])
def test_active_is_a_bool(value):
    optimizer = wrap(small_model())
    with pytest.raises(TypeError, match="active must be True or False"):
        optimizer.active = value
    assert optimizer.active is True
