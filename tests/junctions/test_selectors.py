"""Selectors: the features are found and replaced wherever they are in an encoder's output."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, Encoder, ModalityDropout
from cggm.junctions.selectors import floating_tensors, replace, select
from cggm.policies import DGL


@pytest.mark.parametrize("selector", [-1, (1,), (-1,)])
def test_what_is_selected_is_replaced(selector):
    output = (torch.zeros(2), torch.ones(2))
    found, path = select(output, selector, "audio")
    assert found is output[1]
    new = torch.full((2,), 5.0)
    assert replace(output, path, new)[1] is new


def test_nested_outputs():
    nested = {"a": (torch.zeros(1), [torch.zeros(2), torch.ones(3)])}
    found, path = select(nested, ("a", 1, -1), "audio")
    assert found.shape == (3,)
    new = torch.zeros(3)
    assert replace(nested, path, new)["a"][1][1] is new
    assert nested["a"][1][1] is found
    assert [p for p, _ in floating_tensors(nested)] == [("a", 0), ("a", 1, 0), ("a", 1, 1)]


@pytest.mark.parametrize("selector", [3, "features", (0, 1), (1, 0, 0, 0)])
def test_a_selector_that_names_no_tensor_is_refused_with_those_that_there_are(selector):
    with pytest.raises(
        TypeError, match=r"encoders\['audio'\]: output=.* names no tensor .* 0 \[2\], \(1, 0\) \[3\]"
    ):
        select((torch.ones(2), (torch.ones(3),)), selector, "audio")


@dataclass(frozen=True)
class Frozen:
    features: torch.Tensor
    other: torch.Tensor


@dataclass(slots=True)
class Slots:
    features: torch.Tensor
    other: torch.Tensor


@dataclass(slots=True, frozen=True)
class FrozenSlots:
    features: torch.Tensor
    other: torch.Tensor


@pytest.mark.parametrize("kind", [Frozen, Slots, FrozenSlots])
@pytest.mark.parametrize("selector", [None, "features"])
def test_dataclasses_of_every_kind(kind, selector):
    output = kind(torch.zeros(2), torch.ones(2))
    found, path = select(output, selector, "audio")
    assert found is output.features
    new = replace(output, path, torch.full((2,), 5.0))
    assert new.features.tolist() == [5.0, 5.0]
    assert new.other is output.other
    assert output.features is found
    assert len(list(floating_tensors(output))) == 2


class Property:
    def __init__(self):
        self.hidden = torch.zeros(2)

    features = property(lambda self: self.hidden)


def test_a_property_is_refused_with_what_can_be_set():
    output = Property()
    _, path = select(output, "features", "audio")
    with pytest.raises(TypeError, match=r"must replace 'features' .* type Property, .* 'hidden' \[2\]"):
        replace(output, path, torch.ones(2))


@pytest.mark.parametrize("selector", [None, 0])
def test_complex_features_are_refused(selector):
    features = torch.zeros(2, dtype=torch.complex64)
    output = features if selector is None else (features,)
    with pytest.raises(TypeError, match=r"encoder 'audio': its features are complex .*view_as_real"):
        select(output, selector, "audio")


class LastOfTwo(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 4)

    def forward(self, x):
        return x.mean(), self.layer(x)


class States(nn.Module):
    """An LSTM whose last hidden state the model uses, beside an encoder whose features come last."""

    def __init__(self):
        super().__init__()
        self.text, self.audio = nn.LSTM(5, 4, batch_first=True), LastOfTwo(8)
        self.head = nn.Linear(8, 3)

    def forward(self, text, audio):
        _, (hidden, _) = self.text(text)
        return self.head(torch.cat([hidden[-1], self.audio(audio)[-1]], 1))


def one_step(policy, factor=1.0):
    torch.manual_seed(0)
    model = States()
    encoders = {"text": Encoder("text", output=(1, 0)), "audio": ("audio", -1)}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", policy=policy)
    joined = []
    model.head.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0].detach()))
    inputs, target = (torch.randn(6, 7, 5), torch.randn(6, 8)), torch.arange(6) % 3
    optimizer.balance(factor * F.cross_entropy(model(*inputs), target), target).backward()
    return [p.grad for m in (model.text, model.audio) for p in m.parameters()], joined[0]


def test_the_rule_acts_on_nested_and_negative_selectors():
    # DGL keeps the multimodal gradient from the encoders, however large
    torch.testing.assert_close(one_step(DGL())[0], one_step(DGL(), factor=100.0)[0], rtol=0, atol=0)


def test_dropout_reaches_nested_and_negative_selectors():
    _, joined = one_step(DGL() + ModalityDropout(1.0))
    lost = joined.unflatten(1, (2, 4)).eq(0).all(2)  # [B, M]
    assert lost.any(0).all()
    assert (lost.sum(1) == 1).all()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return {"layers": [{"state": {"hidden": self.layer(x)}}]}


class DeepModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.image, self.head = Deep(), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, audio, image):
        hidden = self.audio(audio)["layers"][0]["state"]["hidden"]
        return self.head(torch.cat([hidden, self.image(image)], 1))


@pytest.mark.parametrize("named", [True, False])
def test_features_at_any_depth_can_be_named(named):
    model, path = DeepModel(), ("layers", 0, "state", "hidden")
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"audio": Encoder("audio", output=path if named else None), "image": "image"},
        head="head",
        policy=DGL(),
    )
    inputs, target = (torch.randn(6, 8), torch.randn(6, 6)), torch.arange(6) % 3
    if not named:
        with pytest.raises(TypeError, match=r"\('layers', 0, 'state', 'hidden'\) \[6, 4\]"):
            model(*inputs)
        return
    for _ in range(2):
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()
