"""Features and gradients that are missing, and models that cannot be wrapped: each error names causes and fixes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cggm import CGGM, CGGMOptimizerWrapper, UnimodalLosses
from helpers import SmallModel, batches, small_model, wrap


class Other(SmallModel):
    """Runs its first encoder as `run` says."""

    run = staticmethod(lambda encoder, x: encoder(x))

    def forward(self, *inputs):
        features = [
            self.run(self.encoders["audio"], inputs[0].requires_grad_()),
            self.encoders["image"](inputs[1]),
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


def step(model, optimizer):
    ((inputs, target),) = batches(1)
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("run", "fix"),
    [
        (lambda encoder, x: encoder.forward(x), r"not encoder\(x\)"),
        (lambda encoder, x: torch.no_grad()(encoder)(x), r"requires_grad_\(False\)"),
        (lambda encoder, x: checkpoint(encoder, x, use_reentrant=True), "pass use_reentrant=False"),
    ],
)
def test_an_encoder_that_is_not_seen(run, fix):
    model = Other()
    model.run = run
    with pytest.raises(RuntimeError, match=rf"no features of \['audio'\].*{fix}"):
        step(model, wrap(model))


def test_an_encoder_replaced_after_wrapping():
    model = small_model()
    optimizer = wrap(model)
    step(model, optimizer)
    model.encoders["audio"] = small_model().encoders["audio"]
    with pytest.raises(RuntimeError, match="replaced by another module after wrapping: wrap again"):
        step(model, optimizer)


def test_a_model_compiled_and_run_before_wrapping_works_after_a_reset():
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    ((inputs, _),) = batches(1)
    compiled(*inputs)
    optimizer = wrap(model)
    with pytest.raises(RuntimeError, match=r"call torch.compiler.reset\(\) after wrapping"):
        step(compiled, optimizer)
    torch.compiler.reset()
    step(compiled, optimizer)
    torch.compiler.reset()


def test_features_that_the_model_detaches():
    model = Other()
    model.run = lambda encoder, x: encoder(x).detach()
    model.encoders["image"].requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        optimizer = wrap(model, policy=CGGM())
    with pytest.raises(RuntimeError, match=r"linear probing, where encoders take requires_grad_\(False\)"):
        step(model, optimizer)
    model.encoders["audio"].requires_grad_(False)
    optimizer.zero_grad()
    step(model, optimizer)


def test_parameters_without_a_shape():
    model = small_model()
    model.encoders["audio"][0] = nn.LazyLinear(16)
    with pytest.raises(
        ValueError, match=r"without a shape, \['encoders.audio.0.weight'.*run it on one batch"
    ):
        wrap(model)
    with torch.no_grad():
        model(*next(batches(1))[0])
    step(model, wrap(model))


def test_a_scripted_encoder():
    model, ((inputs, _),) = small_model(), batches(1)
    traced = torch.jit.trace(model.encoders["audio"], inputs[0])
    model.encoders["audio"] = torch.jit.script(model.encoders["audio"])
    with pytest.raises(TypeError, match=r"encoders\['audio'\] is a scripted module.*torch.jit.trace"):
        wrap(model)
    model.encoders["audio"] = traced
    step(model, wrap(model))


class Jagged(SmallModel):
    """Its first encoder puts out a nested tensor."""

    def forward(self, *inputs):
        found = self.encoders["audio"](inputs[0])
        features = [torch.stack([x.mean(0) for x in found.unbind()]), self.encoders["image"](inputs[1])]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


def test_nested_features():
    torch.manual_seed(0)
    rows = [torch.randn(n, 8) for n in (1, 3, 2)]
    inputs = torch.nested.nested_tensor(rows, layout=torch.jagged), torch.randn(3, 6)
    model, target = Jagged(), torch.tensor([0, 1, 2])
    optimizer = wrap(model, policy=UnimodalLosses())
    with pytest.raises(TypeError, match=r"encoders\['audio'\] puts out a nested tensor.*to_padded_tensor"):
        optimizer.balance(F.cross_entropy(model(*inputs), target), target)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_a_wrapped_model(prefix):
    model = small_model()
    net = nn.DataParallel(model) if prefix == "module." else torch.compile(model, backend="eager")
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(net.parameters(), lr=0.1),
        net,
        encoders={m: prefix + f"encoders.{m}" for m in model.modalities},
        head=prefix + "head",
    )
    step(model, optimizer)
    with pytest.raises(ValueError, match=r"no submodule 'fusion.module.audio'"):
        wrap(small_model(), head="fusion.module.audio")
