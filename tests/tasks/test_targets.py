"""Targets that are no plain tensor, targets that are ignored, and tasks that ask for the modality."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, NormEqualization, Segmentation, UnimodalLosses
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
