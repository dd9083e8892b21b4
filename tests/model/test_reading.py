"""How the unimodal classifiers read features: layouts, functions and masks, through a whole training step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, Encoder, NormEqualization, UnimodalLosses
from cggm.policies import ModalityDropout


class Tower(nn.Module):
    """Puts out features `[B, T, D]` with their axes in another order."""

    def __init__(self, width, order):
        super().__init__()
        self.order = order
        self.layer = nn.Linear(width, 4)

    def forward(self, x, attention_mask=None):
        return self.layer(x).permute(self.order)


class Towers(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order
        self.audio, self.image = Tower(3, order), nn.Linear(6, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, audio, image, mask=None):
        features = self.audio(audio, attention_mask=mask)
        back = [self.order.index(axis) for axis in range(3)]
        features = features.permute(back)  # [B, T, D]
        weights = torch.ones(features.shape[:2]) if mask is None else mask.float()
        pooled = (features * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return self.head(torch.cat([pooled, self.image(image)], 1))


def make(order=(0, 1, 2), policy=None, **options):
    torch.manual_seed(0)
    model = Towers(order)
    encoders = {"audio": Encoder("audio", **options), "image": "image"}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, CGGMOptimizerWrapper(
        base, model, encoders=encoders, head="head", policy=policy or UnimodalLosses()
    )


def data(samples=6, length=7):
    torch.manual_seed(1)
    return torch.randn(samples, length, 3), torch.randn(samples, 6), torch.arange(samples) % 3


def step(model, optimizer, audio, image, target, **options):
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(audio, image, **options), target), target).backward()
    optimizer.step()
    return optimizer.statistics["scores"].clone(), [p.detach().clone() for p in model.audio.parameters()]


@pytest.mark.parametrize("policy", [UnimodalLosses(), NormEqualization() + ModalityDropout(0.5)])
@pytest.mark.parametrize(
    ("order", "layout"), [((0, 2, 1), "B D T"), ((1, 0, 2), "T B D"), ((1, 2, 0), "T D B"), ((0, 2, 1), None)]
)
@pytest.mark.parametrize("length", [7, 6])  # as many positions as samples, too
def test_every_order_of_axes_trains_alike(policy, order, layout, length):
    reference_model, reference = make(policy=policy, layout="B T D")
    model, optimizer = make(order, policy=policy, layout=layout)
    for seed in range(2):
        results = []
        for each in ((reference_model, reference), (model, optimizer)):
            torch.manual_seed(seed)
            audio, image, target = data(length=length)
            results.append(step(*each, audio, image, target))
        torch.testing.assert_close(*results)


def test_an_ambiguous_layout_is_refused_before_anything_changes():
    model, optimizer = make()
    audio, image, target = data(length=6)  # [6, 6, 4]: which are the samples?
    loss = F.cross_entropy(model(audio, image), target)
    with pytest.raises(ValueError, match=r'encoders\[\'audio\'\].*Encoder\(\.\.\., layout="B T D"\)'):
        optimizer.balance(loss, target)


def test_dropout_refuses_samples_in_an_axis_that_nobody_named():
    model, _optimizer = make((1, 0, 2), policy=ModalityDropout(0.5))
    audio, image, _ = data()
    with pytest.raises(ValueError, match=r'modality dropout .* layout="T B D"'):
        model(audio, image)


@pytest.mark.parametrize("mask", ["attention_mask", lambda x, attention_mask: attention_mask])
@pytest.mark.parametrize("classifier", [None, "attention"])
def test_more_padding_gives_the_same_scores(mask, classifier):
    audio, image, target = data()
    valid = torch.arange(7) < torch.randint(1, 8, (6, 1))
    results = []
    for padding in (0, 5):
        model, optimizer = make(mask=mask, classifier=classifier)
        longer = torch.cat([audio, torch.randn(6, padding, 3)], 1)
        flags = torch.cat([valid, torch.zeros(6, padding, dtype=torch.bool)], 1)
        results.append(step(model, optimizer, longer, image, target, mask=flags.long()))
    torch.testing.assert_close(*results)


def test_a_mask_is_optional_in_each_call():
    audio, image, target = data()
    model, optimizer = make(mask="attention_mask")
    plain_model, plain = make()
    torch.testing.assert_close(
        step(model, optimizer, audio, image, target), step(plain_model, plain, audio, image, target)
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            "padding_mask",
            r"mask='padding_mask' is no input of the encoder, which takes \['x', 'attention_mask'\]",
        ),
        (
            lambda x, attention_mask: torch.ones(6, 3),
            r"mask must be \[B, positions\] = \[6, 7\] .* got \[6, 3\]",
        ),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask, message):
    model, optimizer = make(mask=mask)
    audio, image, target = data()
    with pytest.raises(ValueError, match=message):
        step(model, optimizer, audio, image, target)


def test_a_mask_for_a_classifier_that_takes_none_is_refused():
    with pytest.raises(ValueError, match=r"mask is for a classifier whose forward\(\) takes `mask`"):
        make(mask="attention_mask", classifier=nn.Linear(8, 3))


def test_a_function_as_layout():
    audio, image, target = data()
    wanted = step(*make(), audio, image, target)
    model, optimizer = make(layout=lambda features, x, attention_mask: features.mean(1))
    # the default classifier averages after its first, linear layer, so that this is the same
    torch.testing.assert_close(step(model, optimizer, audio, image, target), wanted)
    assert callable(Encoder.of(("audio", lambda features, inputs: features)).layout)


def test_a_function_that_leaves_positions_is_refused():
    model, optimizer = make(layout=lambda features, x, attention_mask: features)
    audio, image, target = data()
    with pytest.raises(
        ValueError, match=r"layout is a function, and must return features \[B, D\], got \[6, 7, 4\]"
    ):
        step(model, optimizer, audio, image, target)


class Recording(nn.Linear):
    def forward(self, x):
        self.shape = list(x.shape)
        return super().forward(x.flatten(1))


def test_a_classifier_of_the_users_gets_the_samples_first():
    classifier = Recording(28, 3)
    torch.manual_seed(0)
    model = Towers((2, 0, 1))
    model.head = nn.Linear(8, 3)
    classifier.output = nn.Linear(8, 3)
    encoders = {
        "audio": Encoder("audio", layout="D B T", classifier=(classifier, "output")),
        "image": "image",
    }
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), model, encoders=encoders, head="head"
    )
    step(model, optimizer, *data())
    assert classifier.shape == [6, 4, 7]


class Mean(nn.Module):
    """A classifier of one's own for features `[T, B, D]`, or with a layout `[B, T, D]`."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.output = axis, nn.Linear(4, 3)

    def forward(self, features):
        return self.output(features.mean(self.axis))


class Sequences(nn.Module):
    """Two encoders of sequences as long as each other; `flat` puts the positions of a sample below each other."""

    def __init__(self, flat):
        super().__init__()
        self.flat = flat
        self.audio, self.image, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 3)

    def forward(self, *inputs):
        size = inputs[0].shape[:2]
        parts = [
            encoder(x.flatten(0, 1)).unflatten(0, size) if self.flat else encoder(x)
            for encoder, x in zip((self.audio, self.image), inputs, strict=True)
        ]
        return self.head(torch.cat(parts, 2).mean(1 if self.flat else 0))


@pytest.mark.parametrize(
    ("flat", "options", "said"),
    [
        (False, {"classifier": Mean(0)}, {"classifier": Mean(1), "layout": "T B D"}),
        (True, {"layout": lambda x, *_: x.view(6, 5, 4).mean(1)}, {"layout": "(B 5) D"}),
    ],
)
def test_dropout_for_another_number_of_samples_than_the_target_has_asks_for_a_layout(flat, options, said):
    shape = (6, 5) if flat else (5, 6)
    inputs, target = (torch.randn(*shape, 3), torch.randn(*shape, 2)), torch.arange(6) % 3
    for each in (options, said):
        model = Sequences(flat)
        encoders = {name: Encoder(name, **copy.deepcopy(each)) for name in ("audio", "image")}
        optimizer = CGGMOptimizerWrapper(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            encoders=encoders,
            head="head",
            policy=UnimodalLosses() + ModalityDropout(0.5),
        )
        loss = F.cross_entropy(model(*inputs), target)
        if each is said:
            optimizer.balance(loss, target).backward()
            optimizer.step()
            return
        drawn = inputs[0].shape[0] if not flat else 30
        with pytest.raises(ValueError, match=rf"drew for {drawn}, but the target has 6: .*'audio', 'image'"):
            optimizer.balance(loss, target)
