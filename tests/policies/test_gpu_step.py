"""The whole step on a GPU: it never waits for the device, and a captured graph replays as the eager step does."""

import pytest
import torch
from test_methods_training import POLICIES
from torch.nn import functional as F

from cggm import CGGM, UnimodalLosses
from helpers import batches, flat, in_buffers, small_model, wrap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CAPTURED = [CGGM(lam=0.1), CGGM(lam=0.0), UnimodalLosses()]
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),  # its counters are on the device
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def make(policy, optimizer, **options):
    model = small_model().cuda()
    return model, wrap(model, OPTIMIZERS[optimizer](model.parameters()), policy, **options)


def step(model, optimizer, inputs, target):
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


def on_device(count):
    return [([x.cuda() for x in inputs], target.cuda()) for inputs, target in batches(count)]


@each_optimizer
@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_step_never_waits_wherever_coefficients_act(optimizer, apply):
    take_steps_without_waiting(*make(CGGM(), optimizer, apply=apply))


@each_optimizer
def test_a_step_that_clips_never_waits(optimizer):
    model, wrapper = make(CGGM(), optimizer, apply="gradient")
    wrapper.max_norm = 0.1
    take_steps_without_waiting(model, wrapper)


@each_optimizer
@pytest.mark.parametrize("policy", [*CAPTURED, *POLICIES.values()], ids=repr)
def test_a_step_never_waits(optimizer, policy):
    take_steps_without_waiting(*make(policy, optimizer))


@each_optimizer
@pytest.mark.parametrize("apply", ["feature", "gradient"])
def test_a_step_with_gradients_in_a_buffer_never_waits(optimizer, apply):
    model, wrapper = make(CGGM(), optimizer, apply=apply, flatten=True)
    buffers = wrapper.gradient_buffers
    take_steps_without_waiting(model, wrapper)
    assert in_buffers(buffers, model.parameters())


def take_steps_without_waiting(model, optimizer):
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


@each_optimizer
@pytest.mark.parametrize("policy", CAPTURED, ids=repr)
def test_a_captured_step_replays(optimizer, policy):
    data = on_device(8)
    eager_model, eager = make(policy, optimizer)
    for batch in data:
        step(eager_model, eager, *batch)
    model, wrapper = make(policy, optimizer)
    inputs, target = [x.clone() for x in data[0][0]], data[0][1].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in data[:3]:
            step(model, wrapper, *batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, wrapper, inputs, target)
    for batch_inputs, batch_target in data[3:]:
        for static, fresh in zip(inputs, batch_inputs, strict=True):
            static.copy_(fresh)
        target.copy_(batch_target)
        graph.replay()
    # Eight steps of AdamW move a parameter by up to 0.08; a counter that stands still would show in the third digit.
    atol = 1e-5 if optimizer == "SGD" else 1e-4
    torch.testing.assert_close(flat(model), flat(eager_model), rtol=1e-4, atol=atol)
