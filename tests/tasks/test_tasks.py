"""Tasks from numbers worked by hand, and whole training steps on maps, volumes, sequences and label sets."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, NormEqualization, Regression, Segmentation, UnimodalLosses
from cggm.model.classifier_modules import UnimodalMapClassifier
from cggm.model.classifiers import build_classifiers
from cggm.policies import AGM, OGMGE, MMPareto
from cggm.tasks import MultiLabel, find_task
from helpers import NoHostSync


def logits(prediction, classes=4, sure=9.0):
    """Logits that say `prediction` `[B, ...]`."""
    return sure * F.one_hot(prediction, classes).movedim(-1, 1).float()


def test_dice_of_each_class_by_hand():
    prediction, target = torch.tensor([[[1, 1], [2, 0]]]), torch.tensor([[[1, 2], [2, 0]]])
    # class 1: 2·1 / (2 + 1), class 2: 2·1 / (1 + 2), class 3: nowhere
    dice = Segmentation().dice(logits(prediction), target)
    torch.testing.assert_close(dice, torch.tensor([2 / 3, 2 / 3, 1.0]))
    score = Segmentation().score(logits(prediction), target)
    torch.testing.assert_close(score, torch.tensor(7 / 9))


def test_dice_of_nested_regions_by_hand():
    prediction, target = torch.tensor([[[1, 2, 3, 0]]]), torch.tensor([[[2, 2, 3, 1]]])
    # whole {1, 2, 3}: 2·3 / (3 + 4); core {1, 3}: 2·1 / (2 + 2); enhancing {3}: 1
    task = Segmentation(regions=((1, 2, 3), (1, 3), (3,)))
    torch.testing.assert_close(task.dice(logits(prediction), target), torch.tensor([6 / 7, 0.5, 1.0]))


def test_the_loss_is_half_weighted_cross_entropy_and_half_dice():
    output = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])  # [1, 2, 2]: (.5, .5) and (.75, .25)
    target = torch.tensor([[0, 1]])
    # weighted mean of −log .5 and −log .25, weights 1 and 3
    entropy = (math.log(2) + 3 * math.log(4)) / 4
    # class 0: 2 · .5 / (1.25 + 1), class 1: 2 · .25 / (.75 + 1)
    dice = (1 / 2.25 + 0.5 / 1.75) / 2
    loss = Segmentation(class_weights=(1.0, 3.0)).loss(output, target)
    torch.testing.assert_close(loss, torch.tensor(0.5 * entropy + 0.5 * (1 - dice)), rtol=1e-5, atol=1e-5)


def test_the_released_loss_and_score_by_hand():
    output = torch.tensor(
        [[[0.0, math.log(3.0)], [0.0, 0.0]], [[0.0, 0.0], [0.0, math.log(3.0)]]]
    )  # [2, 2, 2]
    target = torch.tensor([[0, 1], [1, 1]])
    # class 1 has probabilities (.5, .25) and (.5, .75): Σ p t = .25 + .5 + .75, Σ p = 2, Σ t = 3
    dice = 2 * 1.5 / (2 + 3 + 0.01)
    entropy = -(math.log(0.5) + math.log(0.25) + math.log(0.5) + math.log(0.75)) / 4
    task = Segmentation(released=True)
    torch.testing.assert_close(task.loss(output, target), torch.tensor(0.5 * entropy + 0.5 * (1 - dice)))
    # each sample's own ratio: class 1 is predicted nowhere in a sample with one pixel of it, and in one of two
    prediction = torch.tensor([[0, 0], [0, 1]])
    each = [2 * 0.001 / (1 + 0.002), 2 * (1 + 0.001) / (1 + 2 + 0.002)]
    torch.testing.assert_close(task.dice(logits(prediction, 2), target), torch.tensor([sum(each) / 2]))


def test_released_scores_are_means_over_the_samples_that_count():
    torch.manual_seed(0)
    output, target = torch.randn(4, 4, 6, 6), torch.randint(4, (4, 6, 6))
    task = Segmentation(regions=((1, 2, 3), (1, 3), (3,)), released=True)
    rows = torch.tensor([True, False, True, False])
    for function in (task.dice, task.loss):
        torch.testing.assert_close(function(output, target, rows), function(output[rows], target[rows]))
    ignored = target.masked_fill(~rows[:, None, None], -100)
    torch.testing.assert_close(task.dice(output, ignored), task.dice(output[rows], target[rows]))


@pytest.mark.parametrize("grid", [(12,), (12, 8), (12, 8, 4)])
def test_outputs_are_resized_to_the_target(grid):
    target = torch.zeros(2, *grid, dtype=torch.long)
    small = torch.randn(2, 4, *(n // 2 for n in grid), requires_grad=True)
    task = Segmentation()
    task.loss(small, target).backward()
    assert small.grad.abs().sum() > 0
    assert task.dice(small, target).shape == (3,)
    assert task.confidence(small, target).shape == (2,)


def test_confidence_of_a_map():
    output = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    confidence = Segmentation().confidence(output, torch.tensor([[0, 0]]))
    torch.testing.assert_close(confidence, torch.tensor([(0.5 + 0.75) / 2]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Segmentation(class_weights=(1.0, -1.0)), r"class_weights\[1\] must be"),
        (lambda: Segmentation(regions=()), "regions must be"),
        (lambda: Segmentation(regions=((1,), ())), "regions must be"),
        (
            lambda: Segmentation(class_weights=(1.0, 2.0)).loss(
                torch.zeros(1, 3, 4), torch.zeros(1, 4).long()
            ),
            r"2 weights, but the output \[1, 3, 4\] has 3 classes",
        ),
        (
            lambda: Segmentation(regions=((5,),)).dice(torch.zeros(1, 3, 4), torch.zeros(1, 4).long()),
            "regions names classes",
        ),
        (
            lambda: Segmentation().loss(torch.zeros(1, 3, 4), torch.zeros(1, 4)),
            r"got \[1, 4\] of torch.float32",
        ),
        (
            lambda: Segmentation().loss(torch.zeros(1, 3), torch.zeros(1).long()),
            "target must hold class indices",
        ),
        (lambda: Segmentation().loss(torch.zeros(2, 3, 4), torch.zeros(1, 4).long()), "one row per sample"),
        (lambda: MultiLabel().loss(torch.zeros(2, 3), torch.zeros(2, 1)), r"0 or 1 for each label, \[2, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_several_labels_by_hand():
    output, target = torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([[1, 1, 0]])
    task = MultiLabel()
    torch.testing.assert_close(task.score(output, target), torch.tensor(2 / 4))  # TP 1, FP 1, FN 1
    assert task.score(-torch.ones(1, 3), torch.zeros(1, 3)).item() == 1.0  # nothing to find, nothing found
    expected = (
        -(math.log(1 / (1 + math.exp(-3))) + math.log(1 / (1 + math.e)) + math.log(1 / (1 + math.exp(0.5))))
        / 3
    )
    torch.testing.assert_close(task.loss(output, target), torch.tensor(expected))
    sure = (1 / (1 + math.exp(-3)) + 1 / (1 + math.e) + 1 / (1 + math.exp(0.5))) / 3
    torch.testing.assert_close(task.confidence(output, target), torch.tensor([sure]))


def test_a_metric_of_the_users():
    task = Regression(metric=lambda output, target: ((output > 0) == (target > 0)).float().mean())
    assert task.score(torch.tensor([[1.0], [-1.0]]), torch.tensor([2.0, 3.0])).item() == 0.5
    assert Regression().score(torch.tensor([[1.0], [-1.0]]), torch.tensor([2.0, 3.0])).item() == -2.5


def test_tasks_by_name():
    assert find_task("segmentation") == Segmentation()
    assert find_task("multi-label") == MultiLabel()


class Unet(nn.Module):
    """Two encoders that halve the map, a fusion, and a head on a map that is resized by the model itself."""

    def __init__(self, kernel=1):
        super().__init__()
        self.flair = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.t1 = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU())
        self.fusion, self.head = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, kernel, padding=kernel // 2)

    def forward(self, flair, t1):
        fused = self.fusion(torch.cat([self.flair(flair), self.t1(t1)], 1)).relu()
        return F.interpolate(self.head(fused), scale_factor=2)


class Tagger(nn.Module):
    """Sequences in, labels or a figure out."""

    def __init__(self, outputs):
        super().__init__()
        self.flair, self.t1 = nn.GRU(3, 6, batch_first=True), nn.Linear(3, 6)
        self.head = nn.Linear(12, outputs)

    def forward(self, flair, t1):
        return self.head(torch.cat([self.flair(flair)[0][:, -1], self.t1(t1).mean(1)], 1))


def maps():
    image = torch.randn(6, 1, 8, 8)
    return Unet(), "segmentation", (image, torch.randn(6, 1, 8, 8)), (image[:, 0] > 0).long() * 2


def tags():
    x, y = torch.randn(12, 5, 3), torch.randn(12, 4, 3)
    return Tagger(4), "multi-label", (x, y), torch.cat([x[:, -1, :2] > 0, y.mean(1)[:, :2] > 0], 1).long()


def figures():
    x, y = torch.randn(12, 5, 3), torch.randn(12, 4, 3)
    return Tagger(1), "regression", (x, y), x[:, -1, 0] + y.mean(1)[:, 1]


POLICIES = [
    CGGM(lam=0.1),
    CGGM.paper(1.0, 0.1),
    UnimodalLosses(),
    NormEqualization(),
    MMPareto(),
    OGMGE(0.3),
    AGM(1.0),
]


@pytest.mark.parametrize("make", [maps, tags, figures])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_training_steps_of_every_task(make, policy):
    torch.manual_seed(0)
    model, task, inputs, target = make()
    criterion = find_task(task).loss
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    encoders = {"flair": "flair", "t1": "t1"}
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", policy=policy, task=task)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = criterion(model(*inputs), target)
        optimizer.balance(loss, target).backward()
        optimizer.modulate()
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(value).all() for value in optimizer.statistics.values())
    loss = criterion(model(*inputs), target)
    with NoHostSync():
        optimizer.balance(loss, target).backward()
        optimizer.step()


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_default_classifier_of_a_model_that_puts_out_a_map(kernel):
    model = Unet(kernel)
    classifiers = build_classifiers({}, {"flair": model.flair, "t1": model.t1}, model.head)
    one = classifiers.flair
    assert isinstance(one, UnimodalMapClassifier)
    assert one.width == 6
    assert one.output.weight.shape == model.head.weight.shape
    assert one(torch.randn(2, 6, 5, 7)).shape == (2, 4, 5, 7)
    parameter = one.hidden.weight
    task, target = Segmentation(), torch.zeros(2, 4, 4, dtype=torch.int64)
    classifiers([torch.randn(2, 9, 4, 4), torch.randn(2, 6, 4, 4)], task, target, fit=True)
    assert one.hidden.weight is parameter
    assert one.width == 9
    with pytest.raises(ValueError, match="expects features of width 9"):
        classifiers([torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)], task, target)


@pytest.mark.parametrize(("kind", "grid"), [(nn.Conv1d, (5,)), (nn.Conv3d, (3, 4, 5))])
def test_maps_of_other_dimensions(kind, grid):
    classifier = UnimodalMapClassifier(6, kind(8, 4, 1))
    assert classifier(torch.randn(2, 6, *grid)).shape == (2, 4, *grid)


def test_heads_without_a_default_classifier():
    for head, attention in ((nn.Conv2d(8, 4, 1, groups=2), None), (nn.Conv2d(8, 4, 1), "attention")):
        with pytest.raises(ValueError, match="no default classifier for a head of type Conv2d"):
            build_classifiers(
                dict.fromkeys(("flair", "t1"), attention),
                {"flair": nn.Linear(2, 2), "t1": nn.Linear(2, 2)},
                head,
            )
