"""The junction: two branches of one output, one gradient back; and what counts as an encoder's output."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cggm import CGGM, ModalityDropout, NormEqualization, UnimodalLosses
from cggm.junctions.features import make_junctions
from helpers import SmallModel, batches, flat, plan_of, small_model, train, wrap


def test_unimodal_losses_are_the_plain_sum_of_losses_bit_for_bit():
    wrapped, plain = small_model(), small_model()
    torch.manual_seed(5)
    classifiers = {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in wrapped.modalities}
    twins = nn.ModuleDict(
        {m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for m in wrapped.modalities}
    )
    twins.load_state_dict({f"{m}.{k}": v for m, c in classifiers.items() for k, v in c.state_dict().items()})
    for classifier in classifiers.values():
        classifier.register_forward_hook(lambda *_: None)  # has it run as a module, in torch's own operations
    train(wrapped, wrap(wrapped, policy=UnimodalLosses(), classifiers=classifiers), steps=6)
    optimizer = torch.optim.SGD([*plain.parameters(), *twins.parameters()], lr=0.1)
    for inputs, target in batches(6):
        features = [plain.encoders[m](x) for m, x in zip(plain.modalities, inputs, strict=True)]
        hidden = plain.fusion(torch.cat([f.relu() for f in features], 1)).relu()
        loss = F.cross_entropy(plain.head(hidden), target)
        loss = loss + sum(
            F.cross_entropy(twins[m](f), target) for m, f in zip(plain.modalities, features, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(flat(wrapped), flat(plain))


def test_the_weight_of_unimodal_losses_reaches_the_encoders_alone():
    gradients = []
    for weight in (1.0, 3.0):
        model = small_model()
        optimizer = wrap(model, policy=UnimodalLosses(weight=weight))
        ((inputs, target),) = batches(1)
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        encoder = model.encoders["audio"][2].weight.grad.clone()
        classifier = model.unimodal_classifiers.audio.output.weight.grad.clone()
        gradients.append((encoder, classifier))
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_detached_classifiers_do_not_reach_the_encoders():
    gradients = []
    for policy in (None, CGGM()):
        model = small_model()
        ((inputs, target),) = batches(1)
        if policy is None:
            F.cross_entropy(model(*inputs), target).backward()
        else:
            optimizer = wrap(model, policy=policy)  # the first step's coefficients are 1
            optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        gradients.append([p.grad for p in [*model.encoders.parameters(), *model.fusion.parameters()]])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


Pair = namedtuple("Pair", ["hidden", "features"])


@dataclass
class Output:
    mask: torch.Tensor
    features: torch.Tensor


WAYS = {
    "tuple": (lambda f: (f, None), lambda o: o[0], None),
    "list": (lambda f: [f, None], lambda o: o[0], None),
    "tuple with an index": (lambda f: (None, f), lambda o: o[1], 1),
    "named tuple": (lambda f: Pair(None, f), lambda o: o.features, None),
    "dict": (
        lambda f: {"mask": torch.ones(3, dtype=torch.long), "features": f},
        lambda o: o["features"],
        None,
    ),
    "dict with a key": (lambda f: {"other": f.detach(), "features": f}, lambda o: o["features"], "features"),
    "dataclass": (lambda f: Output(torch.ones(3, dtype=torch.long), f), lambda o: o.features, None),
    "dataclass with a field": (lambda f: Output(f.detach(), f), lambda o: o.features, "features"),
}


class Packing(nn.Module):
    def __init__(self, inner, pack):
        super().__init__()
        self.inner, self.pack = inner, pack

    def forward(self, x):
        return self.pack(self.inner(x))


class PackedModel(SmallModel):
    def __init__(self, pack, unpack):
        super().__init__()
        self.unpack = unpack
        for modality in self.modalities:
            self.encoders[modality] = Packing(self.encoders[modality], pack)

    def forward(self, *inputs):
        features = [
            self.unpack(self.encoders[m](x)).relu_() for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu_())


@pytest.mark.parametrize("way", WAYS)
def test_features_inside_an_output_of_any_kind(way):
    pack, unpack, selector = WAYS[way]
    results = []
    for packed in (False, True):
        torch.manual_seed(0)
        model = PackedModel(pack, unpack) if packed else SmallModel()
        torch.manual_seed(1)
        encoders = {m: f"encoders.{m}" for m in model.modalities}
        if packed and selector is not None:
            encoders = {m: (name, selector) for m, name in encoders.items()}
        optimizer = wrap(model, policy=UnimodalLosses(), encoders=encoders)
        train(model, optimizer, steps=3)
        results.append(flat(model))
    assert torch.equal(*results)


def test_an_output_without_features_is_refused():
    model = PackedModel(lambda f: {"mask": torch.ones(2, dtype=torch.long), "f": [f]}, lambda o: o["f"][0])
    _optimizer = wrap(model)
    ((inputs, _),) = batches(1)
    with pytest.raises(
        TypeError, match=r"encoder 'audio': no features found .* encoders=\{'audio': \(module, 'field'\)\}"
    ):
        model(*inputs)


def test_activation_checkpointing_repeats_no_capture():
    class Checkpointed(SmallModel):
        def forward(self, *inputs):
            features = [
                checkpoint(self.encoders[m], x, use_reentrant=False).relu()
                for m, x in zip(self.modalities, inputs, strict=True)
            ]
            return self.head(self.fusion(torch.cat(features, 1)).relu())

    results = []
    for kind in (SmallModel, Checkpointed):
        torch.manual_seed(0)
        model = kind()
        optimizer = wrap(model, policy=CGGM(smoothing=0.0))
        train(model, optimizer, steps=4)
        with pytest.raises(RuntimeError, match="no features"):
            optimizer.balance(model.head.weight.sum(), torch.zeros(32, dtype=torch.long))
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_nothing_is_captured_without_gradients():
    model = small_model()
    optimizer = wrap(model)
    ((inputs, target),) = batches(1)
    with torch.no_grad():
        model(*inputs)
    with pytest.raises(RuntimeError, match="no features"):
        optimizer.balance(model.head.weight.sum(), target)


@pytest.mark.parametrize("policy", [CGGM(smoothing=0.5), UnimodalLosses()])
def test_under_torch_compile(policy):
    results = []
    for compiled in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=policy)
        run = torch.compile(model, backend="aot_eager", fullgraph=False) if compiled else model
        for inputs, target in batches(4):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


class Hundredfold(UnimodalLosses):
    """A rule of its own, derived from the plain sum."""

    def combine(self, multimodal, unimodal):
        return 100 * multimodal


@pytest.mark.parametrize(
    ("policy", "plain"),
    [
        (CGGM(), True),
        (UnimodalLosses(), True),
        (UnimodalLosses(weight=2.0), False),
        (NormEqualization(), False),
        (Hundredfold(), False),
        (UnimodalLosses() + ModalityDropout(0.1), True),
        (NormEqualization() + ModalityDropout(0.1), False),
    ],
    ids=repr,
)
def test_only_the_plain_sum_is_left_to_autograd(policy, plain):
    plan = plan_of(policy)
    assert all((junction.combine is None) == plain for junction in make_junctions(plan, ("audio", "image")))
