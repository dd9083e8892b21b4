"""Running averages of a model's weights, whose classifiers get their widths in the first step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from cggm import Encoder
from helpers import SmallModel, batches, wrap


def step(model, optimizer):
    ((inputs, target),) = batches(1)
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


class Flat(SmallModel):
    """The features are wider than the encoder's last layer."""

    def forward(self, *inputs):
        features = [self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True)]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


def flat_model():
    model = Flat()
    model.encoders["audio"] = nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Flatten()
    )
    model.fusion = nn.Linear(20, 8)
    return model


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("when", ["width given", "after the first step"])
def test_an_average_of_the_weights(buffers, when):
    model = flat_model()
    given = Encoder("encoders.audio", classifier=16 if when == "width given" else None)
    optimizer = wrap(model, encoders={"audio": given, "image": "encoders.image"})
    if when != "width given":
        step(model, optimizer)
    average = AveragedModel(model, use_buffers=buffers)
    for _ in range(2):
        step(model, optimizer)
        average.update_parameters(model)
    assert not torch.equal(average.module.head.weight, model.head.weight)


def test_a_copy_made_before_the_widths_are_known_is_warned_of():
    model = flat_model()
    optimizer = wrap(model)
    average = AveragedModel(model)
    with pytest.warns(UserWarning, match=r"from 2, a guess, to 16.*Encoder\(..., classifier=16\)"):
        step(model, optimizer)
    with pytest.raises(RuntimeError, match="size of tensor"):
        average.update_parameters(model)
