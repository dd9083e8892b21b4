"""Which classifiers run in the kernel, and that it makes no difference."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import cggm.model.evaluation
import cggm_ops
from cggm import CGGM, UnimodalLosses
from cggm.model.classifier_modules import UnimodalClassifier
from cggm.model.evaluation import evaluate
from cggm.tasks import Classification, MultiLabel
from helpers import backward, batches, small_model, train, wrap

pytestmark = pytest.mark.skipif(cggm_ops.missing_reason() is not None, reason="no compiled extension here")
TARGET = torch.arange(16) % 3


class Own(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(module, register):
    getattr(module, register)(lambda *_: None)
    return module


def with_own_forward():
    layer = nn.Linear(4, 3)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)
    return layer


def with_plain_weight(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


def layers(*more, first=()):
    return nn.Sequential(*first, nn.Linear(4, 8), *more, nn.Linear(8, 3))


KERNEL = {
    "default": lambda: UnimodalClassifier(4, nn.Linear(8, 3)),
    "one layer": lambda: nn.Linear(4, 3),
    "rectifier first": lambda: layers(nn.ReLU(), first=[nn.ReLU()]),
    "three layers": lambda: layers(nn.ReLU(), nn.Linear(8, 8), nn.ReLU()),
}
MODULES = {
    "no rectifier": lambda: layers(),
    "rectifier last": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
    "no layer": lambda: nn.Sequential(),
    "another activation": lambda: layers(nn.Tanh()),
    "dropout": lambda: layers(nn.ReLU(), nn.Dropout()),
    "attention": lambda: UnimodalClassifier(4, nn.Linear(8, 3), attention=True),
    "no bias": lambda: UnimodalClassifier(4, nn.Linear(8, 3, bias=False)),
    "own class": lambda: Own(nn.Linear(4, 3)),
    "own forward": with_own_forward,
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))),
    "hook on the whole": lambda: hooked(layers(nn.ReLU()), "register_forward_hook"),
    "hook on a layer": lambda: nn.Sequential(hooked(nn.Linear(4, 3), "register_forward_pre_hook")),
    "backward hook": lambda: nn.Sequential(hooked(nn.Linear(4, 3), "register_full_backward_hook")),
    "double": lambda: nn.Linear(4, 3).double(),
    "plain attribute": lambda: with_plain_weight(nn.Linear(4, 3)),
    "large": lambda: nn.Sequential(nn.Linear(4, 70_000), nn.ReLU(), nn.Linear(70_000, 3)),
}


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel has been called."""
    made = []

    def counted(*arguments, **options):
        made.append(arguments)
        return cggm_ops.perceptrons(*arguments, **options)

    monkeypatch.setattr(cggm.model.evaluation, "perceptrons", counted)
    return made


def results(classifier, features, evaluation):
    total, losses, outputs = evaluation
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, [*features, *parameters], materialize_grads=True)
    return [total.detach(), losses, *(output.detach() for output in outputs), *gradients]


def by_hand(classifiers, features, target):
    outputs = [classifier(x) for classifier, x in zip(classifiers, features, strict=True)]
    losses = torch.stack([F.cross_entropy(output, target) for output in outputs])
    return losses.sum(), losses.detach(), outputs


@pytest.mark.parametrize("name", [*KERNEL, *MODULES])
def test_every_classifier_gives_its_own_losses_outputs_and_gradients(name, calls):
    torch.manual_seed(0)
    classifier = (KERNEL | MODULES)[name]().eval()  # dropout off, one and the same spectral norm
    dtype = next((p.dtype for p in classifier.parameters()), torch.float32)
    features = [torch.randn(16, 4, dtype=dtype, requires_grad=True) for _ in range(2)]
    target = torch.arange(16) % (4 if name == "no layer" else 3)
    both = [classifier, classifier]
    found = results(classifier, features, evaluate(both, features, Classification(), target))
    wanted = results(classifier, features, by_hand(both, features, target))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, rtol=1e-5, atol=1e-6)
    assert len(calls) == (name in KERNEL)


def test_classifiers_of_different_outputs_run_as_modules(calls):
    classifiers, features = [nn.Linear(4, 3), nn.Linear(4, 5)], [torch.randn(16, 4) for _ in range(2)]
    losses = evaluate(classifiers, features, Classification(), TARGET).losses
    wanted = [F.cross_entropy(c(x), TARGET) for c, x in zip(classifiers, features, strict=True)]
    torch.testing.assert_close(losses, torch.stack(wanted).detach())
    assert not calls


def test_few_rows_do_not_make_a_large_classifier_small(calls):
    classifier = nn.Sequential(nn.Linear(4, 40_000), nn.ReLU(), nn.Linear(40_000, 3))
    evaluate([classifier], [torch.randn(1, 4)], Classification(), TARGET[:1])
    assert not calls


def test_one_that_does_not_fit_takes_the_others_along(calls):
    classifiers = [nn.Linear(4, 3), layers(nn.Tanh())]
    features = [torch.randn(16, 4) for _ in classifiers]
    assert len(evaluate(classifiers, features, Classification(), TARGET).outputs) == 2
    assert not calls


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (Classification(label_smoothing=0.1), TARGET),
        (Classification(), F.one_hot(TARGET).float()),
        (MultiLabel(), F.one_hot(TARGET)),
    ],
)
def test_other_losses_are_the_tasks_own(task, target, calls):
    classifier, x = nn.Linear(4, 3), torch.randn(16, 4)
    losses = evaluate([classifier], [x], task, target).losses
    torch.testing.assert_close(losses[0], task.loss(classifier(x), target).detach())
    assert not calls


@pytest.mark.parametrize("shape", [(16, 5, 4), (16, 4, 2, 2)])
def test_sequences_and_maps_run_as_modules(shape, calls):
    classifier = UnimodalClassifier(4, nn.Linear(8, 3))
    assert evaluate([classifier], [torch.randn(shape)], Classification(), TARGET).outputs[0].shape == (16, 3)
    assert not calls


def test_autocast_runs_modules(calls):
    with torch.autocast("cpu", torch.bfloat16):
        output = evaluate([nn.Linear(4, 3)], [torch.randn(16, 4)], Classification(), TARGET).outputs[0]
    assert output.dtype == torch.bfloat16
    assert not calls


def test_global_hooks_see_the_modules(calls):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    evaluate([nn.Linear(4, 3)], [torch.randn(16, 4)], Classification(), TARGET)
    handle.remove()
    assert not calls


def test_a_target_of_another_length_is_refused_as_ever():
    with pytest.raises(ValueError, match="one row per sample"):
        evaluate([nn.Linear(4, 3)], [torch.randn(16, 4)], Classification(), TARGET[:8])


@pytest.mark.parametrize("policy", [CGGM(), CGGM(score="metric", smoothing=0.0), UnimodalLosses()])
def test_training_is_the_same_with_and_without_the_kernel(policy, calls):
    """A hook that does nothing has the second model's classifiers run as modules."""
    quick = small_model()
    torch.manual_seed(3)
    given = {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in quick.modalities}
    plain, hooks = copy.deepcopy(quick), copy.deepcopy(given)
    for classifier in hooks.values():
        classifier.register_forward_hook(lambda *_: None)
    losses = train(quick, wrap(quick, policy=policy, classifiers=given), steps=10)
    assert len(calls) == 10
    for one, other in zip(
        losses, train(plain, wrap(plain, policy=policy, classifiers=hooks), steps=10), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(calls) == 10


def test_frozen_classifiers_get_no_gradient(calls):
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    model.unimodal_classifiers.audio.hidden.weight.requires_grad_(False)
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    assert len(calls) == 1
    assert model.unimodal_classifiers.audio.hidden.weight.grad is None
    assert model.unimodal_classifiers.audio.hidden.bias.grad is not None
