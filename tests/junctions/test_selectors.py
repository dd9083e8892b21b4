"""Selectors: the features are found and replaced wherever they are in an encoder's output."""

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
