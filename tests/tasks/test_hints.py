"""Targets of another task, with `task` left out: refused with the right choice, before anything has changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, Classification, Segmentation
from helpers import batches, flat, small_model, wrap


class Maps(nn.Module):
    """Two encoders that put out maps, and a convolution as the head."""

    def __init__(self, classes):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, classes, 1)

    def forward(self, x):
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


@pytest.mark.parametrize(
    ("classes", "target", "choice"),
    [
        (1, torch.randint(2, (32, 1)).float(), 'task="regression" for real numbers, task="multi-label"'),
        (1, torch.randint(2, (32,)), 'task="regression" for real numbers, task="multi-label"'),
        (1, torch.rand(32), 'task="regression" for real numbers, task="multi-label"'),
        (3, torch.randn(32, 3), 'real numbers: pass task="regression"'),
        (3, torch.rand(32, 3) * 3, 'real numbers: pass task="regression"'),
        (3, torch.full((32, 3), torch.nan), 'must hold class probabilities.*pass task="regression"'),
        (3, torch.tensor([1.0, 1.0, 0.0]).expand(32, 3), 'pass task="multi-label"'),
        (3, torch.tensor([0.9, 0.3, 0.0]).expand(32, 3), 'pass task="multi-label"'),
        (3, torch.randint(2, (32, 3)), 'pass task="multi-label"'),
        (3, torch.rand(32), 'task="regression"'),
        (3, torch.randint(3, (32, 1)), r"pass target.squeeze\(1\)"),
        (3, torch.randint(3, (32, 7)), r"classifier=nn.Linear\(width, classes\)"),
    ],
)
def test_a_target_of_another_task_names_the_right_choice(classes, target, choice):
    model = small_model()
    model.head = nn.Linear(8, classes)
    optimizer = wrap(model)
    ((inputs, _),) = batches(1)
    before, loss = flat(model), model(*inputs).square().mean()
    with pytest.raises(ValueError, match=choice):
        optimizer.balance(loss, target)
    assert torch.equal(flat(model), before)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("classes", "task", "target", "choice"),
    [
        (1, None, torch.rand(4, 1, 8, 8), 'task="regression"'),
        (3, None, torch.rand(4, 3, 8, 8).softmax(1), 'task="segmentation"'),
        (3, None, torch.randint(3, (4, 8, 8)), 'task="segmentation"'),
        (3, None, torch.randint(3, (4,)), r"classifier=UnimodalClassifier\(width"),
        (1, "segmentation", torch.randint(2, (4, 8, 8)), 'one channel.*task="multi-label"'),
        (1, "segmentation", torch.rand(4, 1, 8, 8), 'task="multi-label"'),
    ],
)
def test_a_target_of_maps_names_the_right_choice(classes, task, target, choice):
    model = Maps(classes)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"encoders": {"a": "a", "b": "b"}, "head": "head"}
    optimizer = CGGMOptimizerWrapper(base, model, **parts, policy=CGGM(), task=task)
    with pytest.raises(ValueError, match=choice):
        optimizer.balance(model(torch.randn(4, 1, 8, 8)).mean(), target)


def test_masked_scores_check_what_the_model_does_not():
    model = small_model()
    optimizer = wrap(model, scores="masked")
    ((inputs, _),) = batches(1)
    with pytest.raises(ValueError, match='pass task="regression"'):
        optimizer.balance(model(*inputs).square().mean(), torch.randn(32, 3))


def test_probabilities_are_taken_and_looked_at_once():
    model = small_model()
    optimizer = wrap(model)
    soft, other = torch.randn(32, 3).softmax(1), torch.randn(32, 3)
    for (inputs, _), target in zip(batches(2), (soft.half(), other), strict=True):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(*inputs), soft), target).backward()
        optimizer.step()


def test_a_sample_of_one_class_has_no_task_to_name():
    """Retrieval compares a batch of one sample with itself."""
    assert Classification().loss(torch.zeros(1, 1), torch.tensor([0])) == 0
    with pytest.raises(ValueError, match="one channel"):
        Segmentation().loss(torch.zeros(1, 1, 4), torch.zeros(1, 4, dtype=torch.long))
