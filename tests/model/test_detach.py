"""After `detach()` the model is what it was: same bits, and it exports where the plain model does."""

import copy

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, MaskedScores, NormEqualization, UnimodalLosses
from cggm.policies import AGM, OGMGE, MMPareto, ModalityDropout
from helpers import SmallModel, batches, small_model, train, wrap

WRAPPED = {
    "default": {"policy": NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6)},
    "cggm": {"policy": CGGM(lam=0.1)},
    "agm": {"policy": AGM()},
    "ogm": {"policy": OGMGE()},
    "pareto": {"policy": MMPareto()},
    "masked": {"policy": CGGM(), "scores": MaskedScores()},
    "flat": {"policy": UnimodalLosses(), "flatten": True},
}


class Scripted(SmallModel):
    """The small model without the loop over names, which TorchScript does not know."""

    def forward(self, audio, image):
        features = [self.encoders["audio"](audio).relu(), self.encoders["image"](image).relu()]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


def trained_and_detached(name):
    """The model after two steps, and a plain one of the same weights."""
    torch.manual_seed(0)
    model = Scripted()
    plain = copy.deepcopy(model)
    optimizer = wrap(model, **WRAPPED[name])
    train(model, optimizer, steps=2)
    optimizer.detach()
    plain.load_state_dict(model.state_dict())
    return model, plain


def inputs_of(size=5):
    ((inputs, _),) = batches(1, size=size)
    return tuple(inputs)


@pytest.mark.parametrize("name", WRAPPED)
def test_nothing_is_left_and_training_goes_on_to_the_bit(name):
    model, plain = trained_and_detached(name)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, kind) for kind in kinds)
        assert module.__dict__.keys() == other.__dict__.keys()
    for each in (model, plain):
        base = torch.optim.SGD(each.parameters(), lr=0.1)
        for inputs, target in batches(2, seed=4):
            base.zero_grad()
            F.cross_entropy(each(*inputs), target).backward()
            base.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("how", ["export", "script", "trace", "onnx"])
def test_it_exports(name, how, tmp_path):
    model, plain = (each.eval() for each in trained_and_detached(name))
    inputs = inputs_of()
    if how == "onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        torch.onnx.export(model, inputs, tmp_path / "model.onnx", dynamo=True)
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        names = [each.name for each in session.get_inputs()]
        (found,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(found), plain(*inputs))
        return
    exported = {
        "export": lambda: torch.export.export(model, inputs).module(),
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, inputs),
    }[how]()
    torch.testing.assert_close(exported(*inputs), plain(*inputs))


@pytest.mark.parametrize("name", WRAPPED)
def test_inference_with_the_wrapper_attached_changes_nothing_and_keeps_nothing(name):
    model = small_model()
    optimizer = wrap(model, **WRAPPED[name])
    train(model, optimizer, steps=2)
    inputs = inputs_of()
    model.eval()
    with torch.no_grad():
        attached = model(*inputs)
    assert not any(hook.features or hook.inputs or hook.output for hook in optimizer._model.encoders.hooks)
    optimizer.detach()
    with torch.no_grad():
        assert torch.equal(model(*inputs), attached)
