"""Targets that are no plain tensor, targets that are ignored, and tasks that ask for the modality."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import (
    CGGM,
    CGGMOptimizerWrapper,
    MultiLabel,
    NormEqualization,
    Regression,
    Segmentation,
    UnimodalLosses,
)
from cggm.policies import AGM, MIMO, MLB, OGMGE, OPM, SMP, MMPareto
from cggm.tasks import Classification
from helpers import NoHostSync, batches, small_model, train, wrap

POLICIES = [
    CGGM(),
    CGGM.paper(1.0, 0.1),
    UnimodalLosses(),
    NormEqualization(),
    MMPareto(),
    OGMGE(0.3),
    MLB(),
    SMP(stage_steps=2, epoch_steps=2),
    UnimodalLosses() + MIMO(),
    OPM(),
    AGM(),
]


def test_ignored_classes_count_for_nothing():
    torch.manual_seed(0)
    logits, target = torch.randn(6, 3), torch.tensor([0, -100, 2, 1, -100, 0])
    kept = target != -100
    for task in (Classification(), Classification(label_smoothing=0.1)):
        torch.testing.assert_close(task.loss(logits, target), task.loss(logits[kept], target[kept]))
        assert task.score(logits, target) == task.score(logits[kept], target[kept])
        torch.testing.assert_close(
            OGMGE().measure(task, [logits], target), OGMGE().measure(task, [logits[kept]], target[kept])
        )
        torch.testing.assert_close(
            AGM().measure(task, [logits], target), AGM().measure(task, [logits[kept]], target[kept])
        )


def test_a_class_that_exists_can_be_ignored():
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    assert Classification(ignore_index=0).score(logits, torch.tensor([0, 1, 1])) == 0.5


def test_tokens_are_classified_like_as_many_samples():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 3), torch.randint(3, (2, 4))
    target[0, :3] = -100
    flat, kept, task = logits.flatten(0, 1), target.flatten(), Classification()
    torch.testing.assert_close(task.loss(logits, target), F.cross_entropy(flat, kept))
    assert task.score(logits, target) == task.score(flat, kept)
    measured = OGMGE().measure(task, [logits], target)
    torch.testing.assert_close(measured, OGMGE().measure(task, [flat], kept))
    soft = torch.randn(2, 4, 3).softmax(-1)
    torch.testing.assert_close(
        task.loss(logits, soft), F.cross_entropy(flat, soft.flatten(0, 1)), rtol=1e-5, atol=1e-6
    )
    assert task.confidence(logits, soft).shape == (2,)
    with pytest.raises(ValueError, match="classes last"):
        task.loss(logits.transpose(1, 2), target)


def test_ignored_pixels_count_for_nothing():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 8), torch.randint(3, (1, 8))
    target[0, 5:] = -100
    task = Segmentation()
    for found, wanted in (
        (task.loss(logits, target), task.loss(logits[..., :5], target[:, :5])),
        (task.dice(logits, target), task.dice(logits[..., :5], target[:, :5])),
        (task.confidence(logits, target), task.confidence(logits[..., :5], target[:, :5])),
    ):
        torch.testing.assert_close(found, wanted)
    assert task.score(logits, torch.full((1, 8), -100)).isnan()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_batch_in_which_everything_is_ignored_changes_no_score(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    (inputs, target), (more, _) = batches(2)
    for x, y in ((inputs, target), (more, torch.full_like(target, -100))):
        optimizer.zero_grad()
        loss = model(*x).square().mean()
        total = optimizer.balance(loss, y)
        total.backward()
        optimizer.step()
    assert torch.isfinite(total)
    if policy != CGGM.paper(1.0, 0.1):  # its direction has a value of its own
        torch.testing.assert_close(total, loss)
    assert torch.isfinite(optimizer.statistics["coefficients"]).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all((p.grad == 0).all() for p in model.unimodal_classifiers.parameters() if p.grad is not None)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_policy_trains_with_ignored_targets_without_waiting(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    train(model, optimizer, steps=1)
    for inputs, target in batches(3):
        target = target.clone()
        target[::2] = -100
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*inputs), target)
        with NoHostSync():
            optimizer.balance(loss, target).backward()
        optimizer.step()
    assert torch.isfinite(optimizer.statistics["scores"]).all()


class Boxes:
    """A task of the user's: structured targets, structured outputs, and the modality's name."""

    def __init__(self):
        self.seen = []

    def loss(self, output, target, modality):
        self.seen.append(modality)
        return F.cross_entropy(output["logits"], target["labels"][0])

    def score(self, output, target, *, modality):
        assert not output["logits"].requires_grad
        self.seen.append(modality)
        return (output["logits"].argmax(1) == target["labels"][0]).float().mean()


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(4, 3)
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, features):
        return {"logits": self.last(self.first(features).relu())}


def test_a_task_of_the_users_gets_structures_and_the_modality():
    model, task = small_model(), Boxes()
    classifiers = {m: (Dictionary(), "last") for m in model.modalities}
    optimizer = wrap(model, policy=CGGM(score_kind="metric"), task=task, classifiers=classifiers)
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs), target)
    optimizer.balance(loss, {"name": None, "labels": (target,)}).backward()
    optimizer.step()
    assert task.seen == ["audio", "image"] * 2
    assert torch.isfinite(optimizer.statistics["scores"]).all()


class Alike:
    """Needs no target."""

    def loss(self, output, target):
        assert target is None
        return output.square().mean()

    def score(self, output, target):
        return -output.square().mean()


@pytest.mark.parametrize("policy", [CGGM(), NormEqualization(), OGMGE()], ids=repr)
def test_no_target_and_accumulation(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy, task=Alike())
    for inputs, _ in batches(2):
        optimizer.balance(model(*inputs).square().mean()).backward()
    optimizer.step()
    assert torch.isfinite(optimizer.statistics["scores"]).all()


def test_a_structure_is_refused_by_the_tasks_of_the_library():
    model = small_model()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={m: f"encoders.{m}" for m in model.modalities},
        head="head",
    )
    ((inputs, target),) = batches(1)
    with pytest.raises(ValueError, match="write a task of your own"):
        optimizer.balance(F.cross_entropy(model(*inputs), target), {"labels": target})


@pytest.mark.parametrize("unknown", [-1.0, 2.0, 255.0, torch.nan])
def test_labels_that_are_not_known_count_for_nothing(unknown):
    torch.manual_seed(0)
    logits, target, task = torch.randn(4, 6), torch.randint(2, (4, 6)).float(), MultiLabel()
    logits.requires_grad_()
    holes = target.clone()
    holes[:2, 3:], holes[2:, 3:] = unknown, unknown
    kept = logits[:, :3], target[:, :3]
    torch.testing.assert_close(task.loss(logits, holes), task.loss(*kept))
    assert task.score(logits, holes) == task.score(*kept)
    torch.testing.assert_close(task.confidence(logits, holes), task.confidence(*kept))
    assert torch.equal(task.counted(holes), torch.full((4,), 3.0))
    (gradient,) = torch.autograd.grad(task.loss(logits, holes), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 3:] == 0).all()
    assert task.loss(logits, torch.full_like(target, unknown)).isnan()
    assert task.score(logits, torch.full_like(target, unknown)).isnan()


@pytest.mark.parametrize("shape", [(6, 4), (6, 6, 4), (6, 7, 4)])
def test_samples_without_the_modality_have_no_labels(shape):
    torch.manual_seed(0)
    logits, target, task = torch.randn(shape), torch.randint(2, shape), MultiLabel()
    present = torch.tensor([True, True, True, False, False, False])
    assert task.score(logits, target, present=present) == task.score(logits[:3], target[:3])
    torch.testing.assert_close(task.loss(logits, target, present=present), task.loss(logits[:3], target[:3]))


def test_multi_label_targets_of_one_label_need_their_axis():
    with pytest.raises(ValueError, match=r"got \[6\]; pass target\[:, None\]"):
        MultiLabel().loss(torch.randn(6, 1), torch.ones(6))


def test_training_with_labels_that_are_not_known_stays_finite():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses(), task="multi-label")
    ((inputs, _),) = batches(1)
    target = torch.randint(-1, 2, (32, 3))
    for _ in range(60):
        optimizer.zero_grad()
        loss = MultiLabel().loss(model(*inputs), target)
        optimizer.balance(loss, target).backward()
        optimizer.step()
    assert (optimizer.statistics["unimodal_losses"] >= 0).all()
    assert (optimizer.statistics["skipped"] == 0).all()


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_numbers_that_are_not_known_count_for_nothing(kind):
    torch.manual_seed(0)
    output, target, task = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6), Regression(kind=kind)
    holes, present = target.clone(), torch.tensor([True, True, True, False])
    holes[:, 2:] = torch.nan
    torch.testing.assert_close(task.loss(output, holes), task.loss(output[:, :2], target[:, :2]))
    torch.testing.assert_close(task.score(output, holes), task.score(output[:, :2], target[:, :2]))
    torch.testing.assert_close(task.loss(output, holes, present), task.loss(output[:3, :2], target[:3, :2]))
    (gradient,) = torch.autograd.grad(task.loss(output, holes), output)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 2:] == 0).all()
    assert task.loss(output, torch.full_like(target, torch.nan)).isnan()
