"""The unimodal classifiers' losses on a batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from cggm import UnimodalLosses
from cggm.model.classifier_modules import UnimodalClassifier
from cggm.model.evaluation import unimodal_losses
from cggm.tasks import Classification, MultiLabel
from helpers import backward, batches, small_model, wrap

TARGET = torch.arange(16) % 3
CLASSIFIERS = {
    "default": lambda: UnimodalClassifier(4, nn.Linear(8, 3)),
    "attention": lambda: UnimodalClassifier(4, nn.Linear(8, 3), attention=True),
    "no bias": lambda: UnimodalClassifier(4, nn.Linear(8, 3, bias=False)),
    "one layer": lambda: nn.Linear(4, 3),
    "no layer": lambda: nn.Sequential(),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))),
    "double": lambda: nn.Linear(4, 3).double(),
}


def results(classifier, features, evaluation):
    losses, outputs = evaluation
    total = losses.sum()
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, [*features, *parameters], materialize_grads=True)
    return [losses.detach(), *(output.detach() for output in outputs), *gradients]


def by_hand(classifiers, features, target):
    outputs = [classifier(x) for classifier, x in zip(classifiers, features, strict=True)]
    losses = torch.stack([F.cross_entropy(output, target) for output in outputs])
    return losses, outputs


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_gives_its_own_losses_outputs_and_gradients(name):
    torch.manual_seed(0)
    classifier = CLASSIFIERS[name]().eval()  # one and the same spectral norm
    dtype = next((p.dtype for p in classifier.parameters()), torch.float32)
    features = [torch.randn(16, 4, dtype=dtype, requires_grad=True) for _ in range(2)]
    target = torch.arange(16) % (4 if name == "no layer" else 3)
    both = [classifier, classifier]
    found = results(classifier, features, unimodal_losses(both, features, Classification(), target))
    wanted = results(classifier, features, by_hand(both, features, target))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=1e-5, atol=1e-6)


def test_classifiers_of_different_outputs():
    classifiers, features = [nn.Linear(4, 3), nn.Linear(4, 5)], [torch.randn(16, 4) for _ in range(2)]
    losses = unimodal_losses(classifiers, features, Classification(), TARGET).losses
    wanted = [F.cross_entropy(c(x), TARGET) for c, x in zip(classifiers, features, strict=True)]
    torch.testing.assert_close(losses, torch.stack(wanted))


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (Classification(label_smoothing=0.1), TARGET),
        (Classification(), F.one_hot(TARGET).float()),
        (MultiLabel(), F.one_hot(TARGET)),
    ],
)
def test_losses_are_the_tasks_own(task, target):
    classifier, x = nn.Linear(4, 3), torch.randn(16, 4)
    losses = unimodal_losses([classifier], [x], task, target).losses
    torch.testing.assert_close(losses[0], task.loss(classifier(x), target))


@pytest.mark.parametrize("shape", [(16, 5, 4), (16, 4, 2, 2)])
def test_sequences_and_maps(shape):
    classifier = UnimodalClassifier(4, nn.Linear(8, 3))
    assert unimodal_losses([classifier], [torch.randn(shape)], Classification(), TARGET).outputs[0].shape == (
        16,
        3,
    )


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = unimodal_losses([nn.Linear(4, 3)], [torch.randn(16, 4)], Classification(), TARGET).outputs[0]
    assert output.dtype == torch.bfloat16


def test_a_target_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one row per sample"):
        unimodal_losses([nn.Linear(4, 3)], [torch.randn(16, 4)], Classification(), TARGET[:8])


def test_frozen_classifiers_get_no_gradient():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    model.unimodal_classifiers.audio.hidden.weight.requires_grad_(False)
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    assert model.unimodal_classifiers.audio.hidden.weight.grad is None
    assert model.unimodal_classifiers.audio.hidden.bias.grad is not None
