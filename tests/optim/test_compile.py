"""torch.compile of the model and of the step: no graph break that the junctions cause, and the same training."""

import shutil
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from cggm import CGGM, UnimodalLosses
from cggm.model.lookup import submodule
from cggm.policies.plan import scale_targets
from helpers import batches, flat, small_model, wrap

POLICIES = {
    "stable": CGGM(smoothing=0.5, lam=0.1),
    "released": CGGM.released(rho=1.0),
    "unimodal losses": UnimodalLosses(),
}
CASES = [(name, apply) for name, p in POLICIES.items() for apply in scale_targets(p, adaptive=False)]


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(name, apply, run=lambda model: model, steps=4):
    model = small_model()
    optimizer = wrap(model, policy=POLICIES[name], apply=apply)
    compiled = run(model)
    coefficients = []
    for inputs, target in batches(steps):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(compiled(*inputs), target), target).backward()
        optimizer.step()
        coefficients.append(optimizer.statistics["coefficients"].clone())
    return flat(model), torch.stack(coefficients)


@pytest.mark.parametrize(("name", "apply"), CASES)
def test_one_graph_for_the_whole_model_and_no_recompilation(name, apply):
    counter = CompileCounterWithBackend("aot_eager")
    results = trained(name, apply, lambda model: torch.compile(model, backend=counter, fullgraph=True))
    assert counter.frame_count == 1  # one graph, compiled once, although the coefficients change every step
    reference = trained(name, apply)
    torch.testing.assert_close(results, reference, rtol=1e-4, atol=1e-5)
    if name == "stable":
        assert not torch.equal(reference[1][0], reference[1][-1])


def test_evaluation_compiles_to_one_more_graph_and_captures_nothing():
    model = small_model()
    optimizer = wrap(model, policy=POLICIES["stable"])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    ((inputs, target),) = batches(1)
    with torch.no_grad():
        compiled(*inputs)
    optimizer.balance(F.cross_entropy(compiled(*inputs), target), target).backward()
    optimizer.step()
    assert counter.frame_count == 2


def test_a_compiled_model_given_to_the_wrapper():
    model = small_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled.modalities = model.modalities
    optimizer = wrap(compiled, torch.optim.SGD(model.parameters(), lr=0.1), POLICIES["stable"])
    for inputs, target in batches(3):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(compiled(*inputs), target), target).backward()
        optimizer.step()
    assert optimizer.modalities == ("audio", "image")


def test_encoders_compiled_one_by_one():
    def each(model):
        for modality in model.modalities:
            model.encoders[modality].compile(backend="aot_eager", fullgraph=True)
        return model

    torch.testing.assert_close(
        trained("stable", "feature", each), trained("stable", "feature"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_compiled_step_of_the_wrapped_optimizer(apply):
    """The base's step is one graph; what balancing does around it stays outside, a few launches of ready kernels."""
    results = []
    for compiled in (False, True):
        model = small_model()
        base = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)
        optimizer = wrap(model, base, POLICIES["stable"], apply=apply)
        counter = CompileCounterWithBackend("aot_eager")
        if compiled:
            base.step = torch.compile(base.step, backend=counter)
        for inputs, target in batches(3):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert counter.frame_count >= 1


def test_a_compiled_function_around_the_whole_step():
    """The wrapper's functions stay outside of its graphs, as those of torch's own optimizers do."""
    results = []
    for compiled in (False, True):
        model = small_model()
        torch.manual_seed(3)
        optimizer = wrap(model, policy=POLICIES["stable"])

        def step(inputs, target, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
            optimizer.step()

        taken = torch.compile(step, backend="eager") if compiled else step
        for inputs, target in batches(2):
            taken(inputs, target)
        results.append(flat(model))
    assert torch.equal(*results)


def test_the_papers_double_backward_cannot_go_through_a_compiled_head():
    model = small_model()
    optimizer = wrap(model, policy=CGGM.paper(rho=1.0))
    compiled = torch.compile(model, backend="aot_eager")
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(compiled(*inputs), target)
    with pytest.raises(RuntimeError, match=r"does not currently support double backward"):
        optimizer.balance(loss, target)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor():
    results = trained("stable", "feature", lambda m: torch.compile(m, fullgraph=True), steps=3)
    torch.testing.assert_close(results, trained("stable", "feature", steps=3), rtol=1e-3, atol=1e-4)


def test_modules_are_found_by_name_behind_a_compiled_one():
    model = small_model()
    model.encoders["image"] = torch.compile(model.encoders["image"])
    model.encoders["nothing"] = torch.nn.Sequential()
    for path in ("head", "encoders.audio.2", "encoders.image", "encoders.image.0", "encoders.nothing"):
        assert submodule(model, path) is model.get_submodule(path)
    with pytest.raises(AttributeError, match="nowhere"):
        submodule(model, "encoders.nowhere")


class Two(nn.Module):
    """Puts out two tensors, of which the model uses one."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        low = self.low(x)
        return low, self.high(low)


class Selected(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.used, self.audio, self.image, self.head = used, Two(), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, audio, image):
        return self.head(torch.cat([self.audio(audio)[self.used], self.image(image)], 1))


@pytest.mark.parametrize("looked", [False, True])
def test_a_compiled_model_whose_use_of_outputs_cannot_be_seen(looked):
    """It is said once; a step before compiling finds the wrong output."""
    model = Selected(used=1)
    optimizer = wrap(model, policy=UnimodalLosses(), encoders={"audio": ("audio", 0), "image": "image"})
    run = model if looked else torch.compile(model, backend="aot_eager")

    def step():
        ((inputs, target),) = batches(1)
        optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
        optimizer.step()

    if looked:
        with pytest.raises(RuntimeError, match="came back through 1 alone"):
            step()
    else:
        with pytest.warns(UserWarning, match="'audio'.*in a compiled model the wrapper cannot see"):
            step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step()
