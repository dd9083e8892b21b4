"""Unimodal classifiers: built by themselves, given by the user, on features of several shapes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper
from cggm.junctions.layouts import last_layer
from cggm.model.classifiers import UnimodalClassifier
from helpers import backward, batches, small_model, train, wrap


def test_the_default_classifier_has_the_heads_shape():
    model = small_model()
    wrap(model)
    for name, classifier in model.unimodal_classifiers.named_children():
        assert classifier.hidden.weight.shape == (8, 4), name
        assert classifier.output.weight.shape == model.head.weight.shape


@pytest.mark.parametrize(
    ("encoder", "width"),
    [
        (nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Dropout()), 7),
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()), 16),
        (nn.GRU(4, 6, bidirectional=True), 12),
        (nn.LSTM(4, 6, proj_size=3), 3),
        (nn.Embedding(10, 9), 9),
        (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), 5),
        (nn.Flatten(), None),
    ],
)
def test_the_width_of_features_is_read_off_the_encoder(encoder, width):
    assert last_layer(encoder)[1] == width


class MisleadingModel(nn.Module):
    """Its features are twice as wide as the last layer of the encoder says."""

    class Encoder(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, 4)

        def forward(self, x):
            return torch.cat([self.layer(x), -self.layer(x)], 1)

    def __init__(self):
        super().__init__()
        self.audio, self.image = self.Encoder(8), self.Encoder(6)
        self.head = nn.Linear(16, 3)

    def forward(self, audio, image):
        return self.head(torch.cat([self.audio(audio), self.image(image)], 1))


def make_misleading(**options):
    torch.manual_seed(0)
    model = MisleadingModel()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    encoders = {"audio": "audio", "image": "image"}
    return model, CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", **options)


def test_the_first_forward_corrects_a_guessed_width():
    model, optimizer = make_misleading()
    parameter = model.unimodal_classifiers.audio.hidden.weight
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    optimizer.step()
    assert model.unimodal_classifiers.audio.hidden.weight is parameter
    assert parameter.shape == (16, 8)
    assert parameter in optimizer.state
    again_model, again = make_misleading()
    again_model.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())  # before any forward pass
    torch.testing.assert_close(
        again_model.unimodal_classifiers.audio.hidden.weight, parameter, rtol=0, atol=0
    )


def test_a_width_can_be_told():
    model, _ = make_misleading(classifiers={"audio": 8, "image": 8})
    assert model.unimodal_classifiers.image.width == 8


def test_features_that_change_their_width_later_are_refused():
    model, optimizer = make_misleading()
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    model.audio.forward = lambda x: model.audio.layer(x)
    model.head = nn.Linear(12, 3)
    with pytest.raises(
        ValueError, match=r"encoders\['audio'\]: its classifier expects features of width 8.*classifier="
    ):
        backward(model, optimizer, inputs, target)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("shape", [(5, 16), (5, 7, 16), (5, 16, 3, 4), (5, 16, 2, 3, 4)])
def test_sequences_and_maps(shape, attention):
    classifier = UnimodalClassifier(16, nn.Linear(12, 4), attention=attention)
    output = classifier(torch.randn(shape))
    assert output.shape == (5, 4)


def test_positions_of_a_map_count_alike():
    classifier = UnimodalClassifier(16, nn.Linear(12, 4), attention=True)
    features = torch.randn(5, 16, 6)
    order = torch.randperm(6)
    straight, shuffled = classifier(features[..., None]), classifier(features[..., order, None])
    torch.testing.assert_close(straight, shuffled)


def test_attention_on_request():
    model = small_model()
    optimizer = wrap(model, classifiers="attention")
    assert isinstance(model.unimodal_classifiers.audio.attention, nn.MultiheadAttention)
    train(model, optimizer, steps=2)


def test_a_module_of_the_users_whose_output_layer_is_found_or_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.first(self.hidden(x).relu()) + self.second(self.hidden(x).relu())

    model, audio, image = small_model(), Two(), Two()
    optimizer = wrap(model, classifiers={"audio": audio, "image": (image, "first")})
    train(model, optimizer, steps=1)
    unimodal = [audio.second.weight.grad, image.first.weight.grad]
    expected = [F.cosine_similarity(model.head.weight.grad.flatten(), u.flatten(), 0) for u in unimodal]
    torch.testing.assert_close(optimizer.statistics["cosines"], torch.stack(expected))


def test_an_output_layer_in_another_dtype_than_the_rest_and_replaced_later():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.output = nn.Linear(4, 8).bfloat16(), nn.Linear(8, 3)

        def forward(self, x):
            return self.output(self.hidden(x).relu().float())

    model = small_model()
    optimizer = wrap(model, classifiers={"audio": Mixed(), "image": Mixed()})
    train(model, optimizer, steps=1)
    model.unimodal_classifiers.audio.output = replaced = nn.Linear(8, 3)
    optimizer.add_param_group({"params": list(replaced.parameters())})
    train(model, optimizer, steps=1)
    expected = F.cosine_similarity(model.head.weight.grad.flatten(), replaced.weight.grad.flatten(), 0)
    torch.testing.assert_close(optimizer.statistics["cosines"][0], expected)


def test_classifiers_that_the_model_has_already():
    model = small_model()
    model.own = nn.ModuleDict({m: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)) for m in model.modalities})
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base, classifiers={m: model.own[m] for m in model.modalities})
    assert [p.numel() for group in base.param_groups[1:] for p in group["params"]] == [
        0
    ]  # holds the policy's state
    before = model.own["audio"][1].weight.detach().clone()
    train(model, optimizer, steps=1)
    assert not torch.equal(model.own["audio"][1].weight, before)
    assert {k for k in model.state_dict() if "classifiers" in k} == set()
    optimizer.load_state_dict(optimizer.state_dict())


def test_classifiers_learn():
    model = small_model()
    optimizer = wrap(model, torch.optim.Adam(model.parameters(), lr=0.01))
    train(model, optimizer, steps=1)
    first = optimizer.statistics["scores"].clone()
    train(model, optimizer, steps=60)
    assert (optimizer.statistics["scores"] > first).all()
