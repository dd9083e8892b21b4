"""Encoders given as a list of modules: the order of the list, and outputs of inner modules that the fusion uses."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, ModalityDropout, UnimodalLosses
from cggm.policies import AGM, DGL


class Tower(nn.Module):
    """An encoder of two stages beside another one; with `skip` the fusion uses the first stage, too."""

    def __init__(self, skip=False):
        super().__init__()
        self.skip = skip
        self.low = nn.Linear(8, 4)
        self.middle = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
        self.high, self.image, self.head = nn.Linear(4, 4), nn.Linear(6, 4), nn.Linear(12, 3)

    def forward(self, audio, image):
        low = self.low(audio)
        middle = low
        for layer in self.middle:
            middle = layer(middle)
        high = self.high(middle)
        inner = {"low": low, "middle": middle}.get(self.skip, torch.zeros_like(low))
        return self.head(torch.cat([high, inner, self.image(image)], 1))


def make(skip=False, policy=None, modules=("low", "middle", "high"), **options):
    torch.manual_seed(0)
    model = Tower(skip)
    encoders = {"audio": list(modules), "image": "image"}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, CGGMOptimizerWrapper(
        base, model, encoders=encoders, head="head", policy=policy or DGL(), **options
    )


def step(model, optimizer):
    inputs, target = (torch.randn(6, 8), torch.randn(6, 6)), torch.arange(6) % 3
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


@pytest.mark.parametrize("skip", ["low", "middle"])
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (DGL(), {}),
        (UnimodalLosses() + ModalityDropout(0.5), {}),
        (AGM(), {}),
        (CGGM(), {"apply": "feature"}),
        (CGGM(lam=0.0), {"apply": "gradient", "scores": "masked"}),
    ],
)
def test_a_skip_connection_past_the_last_module_is_refused_before_anything_changes(skip, policy, options):
    model, optimizer = make(skip, policy, **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError, match=rf"encoders\['audio'\]: the model uses what \['{skip}'\] put out, .* 'high'"
    ):
        step(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_skip_connection_matters_only_where_something_is_done_at_the_output():
    model, optimizer = make("low", CGGM(), apply="gradient")
    step(model, optimizer)


@pytest.mark.parametrize("modules", [("high", "middle", "low"), ("middle", "high", "low")])
def test_a_list_in_another_order_is_refused_with_the_right_one(modules):
    model, optimizer = make(modules=modules)
    with pytest.raises(
        ValueError, match=r"encoders\['audio'\].*list them as they ran, \['low', 'middle', 'high'\]"
    ):
        step(model, optimizer)


def test_a_chain_passes_and_is_not_watched_any_longer():
    model, optimizer = make()
    pickle.loads(pickle.dumps(model))
    copied_model, copied = copy.deepcopy((model, optimizer))
    for each in ((model, optimizer), (copied_model, copied)):
        step(*each)
        step(*each)
        assert len(each[0].low._forward_hooks) == 0


def test_a_compiled_pass_says_that_it_cannot_be_watched():
    torch._dynamo.reset()
    model, optimizer = make("low")
    model.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"encoders\['audio'\] is a list .* before torch\.compile"):
        step(model, optimizer)
