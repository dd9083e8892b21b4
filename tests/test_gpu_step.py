"""The whole step on a GPU: it never waits for the device, and a captured graph replays as the eager step does."""

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, UnimodalLosses
from helpers import batches, flat, small_model, wrap
from test_methods_training import POLICIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CAPTURED = [CGGM(lam=0.1), CGGM(lam=0.0), UnimodalLosses()]


def make(policy):
    model = small_model().cuda()
    return model, wrap(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), policy)


def step(model, optimizer, inputs, target):
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


def on_device(count):
    return [([x.cuda() for x in inputs], target.cuda()) for inputs, target in batches(count)]


@pytest.mark.parametrize("policy", [*CAPTURED, *POLICIES.values()], ids=repr)
def test_a_step_never_waits(policy):
    model, optimizer = make(policy)
    data = on_device(6)
    for batch in data[:3]:
        step(model, optimizer, *batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data[3:]:
            step(model, optimizer, *batch)
            dict(optimizer.statistics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("policy", CAPTURED, ids=repr)
def test_a_captured_step_replays(policy):
    data = on_device(8)
    eager_model, eager = make(policy)
    for batch in data:
        step(eager_model, eager, *batch)
    model, optimizer = make(policy)
    inputs, target = [x.clone() for x in data[0][0]], data[0][1].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in data[:3]:
            step(model, optimizer, *batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, optimizer, inputs, target)
    for batch_inputs, batch_target in data[3:]:
        for static, fresh in zip(inputs, batch_inputs, strict=True):
            static.copy_(fresh)
        target.copy_(batch_target)
        graph.replay()
    torch.testing.assert_close(flat(model), flat(eager_model), rtol=1e-4, atol=1e-5)
