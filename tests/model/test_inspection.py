"""`optimizer.explain()`: what it tells about a model, what it warns of, and that it changes nothing."""

import copy
import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, UnimodalLosses
from helpers import batches, flat, small_model, train, wrap


class TwoOutputs(nn.Module):
    """An encoder whose fusion uses the second of its outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        features = self.layer(x)
        return features.tanh(), features.relu()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.image, self.head = TwoOutputs(), nn.Linear(6, 4), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, audio, image):
        return self.head(self.norm(torch.cat([self.audio(audio)[1], self.image(image)], 1)))


def explained(optimizer, model, batch):
    inputs, target = batch
    return optimizer.explain(lambda: F.cross_entropy(model(*inputs), target), target)


def test_a_sound_model_has_a_report_per_modality_and_no_warning():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses() + CGGM(), apply="gradient")
    (batch,) = batches(1)
    explanation = explained(optimizer, model, batch)
    audio, image = explanation.reports
    assert (audio.modality, image.modality) == ("audio", "image")
    assert audio.parameters == audio.stepped == sum(p.numel() for p in model.encoders.audio.parameters())
    assert audio.multimodal > 0
    assert audio.unimodal > 0
    assert audio.calls == 1
    assert explanation.warnings == ()
    printed = Console(record=True, width=100, file=io.StringIO())
    printed.print(explanation)
    for text in (str(explanation), printed.export_text()):
        for word in ("encoders.audio", "[32, 4]", "UnimodalClassifier", "the gradient"):
            assert word in text


def test_it_changes_nothing():
    model = Model()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        encoders={"audio": Encoder("audio", output=1), "image": "image"},
        head="head",
    )
    twin_model, twin = copy.deepcopy((model, optimizer))
    model.modalities = twin_model.modalities = ("audio", "image")
    (batch,) = batches(1)
    for one, other in ((model, optimizer), (twin_model, twin)):
        torch.manual_seed(5)
        train(one, other, steps=2)
        if one is model:
            optimizer.zero_grad()
            explained(optimizer, model, batch)
        train(one, other, steps=2, seed=9)
    assert torch.equal(flat(model), flat(twin_model))


@pytest.mark.parametrize(
    ("encoder", "warning"),
    [
        (
            "audio",
            r"does not use the features that were captured, but output \[1\]: pass Encoder\(\.\.\., output=1\)",
        ),
        (Encoder("audio", output=1), None),
    ],
)
def test_features_that_the_model_does_not_use_are_told(encoder, warning):
    model = Model()
    encoders = {"audio": encoder, "image": "image"}
    base = torch.optim.SGD([*model.image.parameters(), *model.head.parameters()], lr=0.1)
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head")
    (batch,) = batches(1)
    text = " ".join(explained(optimizer, model, batch).warnings)
    assert "the optimizer has none of its parameters" in text
    assert ("does not use" in text) == (warning is not None)
    assert warning is None or re.search(warning, text)


class UsesBoth(Model):
    def forward(self, audio, image):
        one, other = self.audio(audio)
        return self.head(self.norm(torch.cat([one + other, self.image(image)], 1)))


def test_a_further_output_in_use_is_balanced_and_no_reason_to_warn():
    model = UsesBoth()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    encoders = {"audio": "audio", "image": "image"}
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", policy=UnimodalLosses())
    explanation = explained(optimizer, model, *batches(1))
    assert explanation.warnings == ()
    assert "and outputs [1]" in str(explanation)


def test_a_pending_step_is_refused():
    model = small_model()
    optimizer = wrap(model)
    ((inputs, target),) = batches(1)
    optimizer.balance(F.cross_entropy(model(*inputs), target), target)
    with pytest.raises(RuntimeError, match=r"explain\(\)"):
        optimizer.explain(lambda: F.cross_entropy(model(*inputs), target), target)
