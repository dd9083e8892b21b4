"""Architectures of other people, as they are: OGM-GE's with its four fusions, MulT's towers, encoders in parts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, NormEqualization, UnimodalLosses
from cggm.policies import AGM, DGL, OGMGE, FeaturePareto, MMPareto, ModalityDropout
from helpers import flat, small_model, train, wrap

POLICIES = {
    "cggm": CGGM(smoothing=0.0),
    "ogm-ge": OGMGE(split_head=False),
    "agm": AGM(),
    "mmpareto": MMPareto(),
    "feature pareto": FeaturePareto(),
    "dgl": DGL(),
    "unimodal losses with dropout": UnimodalLosses() + ModalityDropout(0.5),
    "norm equalization": NormEqualization() + CGGM(smoothing=0.0),
}


class Concat(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc_out = nn.Linear(2 * width, 3)

    def forward(self, x, y):
        return x, y, self.fc_out(torch.cat([x, y], 1))


class Sum(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc_x, self.fc_out = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x, y):
        return x, y, self.fc_x(x) + self.fc_out(y)


class FiLM(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc, self.fc_out = nn.Linear(width, 2 * width), nn.Linear(width, 3)

    def forward(self, x, y):
        gamma, beta = self.fc(x).chunk(2, 1)
        return x, y, self.fc_out(gamma * y + beta)


class Gated(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc_x, self.fc_y, self.fc_out = nn.Linear(width, 6), nn.Linear(width, 6), nn.Linear(6, 3)

    def forward(self, x, y):
        x_hidden, y_hidden = self.fc_x(x), self.fc_y(y)
        return x_hidden, y_hidden, self.fc_out(x_hidden.sigmoid() * y_hidden)


def backbone(channels, width=8):
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())


class AVClassifier(nn.Module):
    """Two maps, the visual one of all frames in the batch axis, which are pooled only after the encoders."""

    def __init__(self, fusion):
        super().__init__()
        self.fusion_module, self.audio_net, self.visual_net = fusion(), backbone(1), backbone(3)

    def forward(self, audio, visual):
        samples, _, frames = visual.shape[:3]
        visual = visual.permute(0, 2, 1, 3, 4).flatten(0, 1)
        a, v = self.audio_net(audio), self.visual_net(visual)
        v = v.unflatten(0, (samples, frames)).transpose(1, 2)  # [B, D, T, H, W]
        a, v = F.adaptive_avg_pool2d(a, 1).flatten(1), F.adaptive_avg_pool3d(v, 1).flatten(1)
        return self.fusion_module(a, v)


def per_frame(features, inputs):
    return features.unflatten(0, (-1, 3)).mean((1, 3, 4))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fusion", [Concat, Sum, FiLM, Gated])
def test_ogm_ges_architecture(fusion, policy):
    torch.manual_seed(0)
    model = AVClassifier(fusion)
    layout = "(B T) D H W"
    encoders = {"audio": "audio_net", "visual": Encoder("visual_net", layout=layout)}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = CGGMOptimizerWrapper(
        base, model, encoders=encoders, head="fusion_module.fc_out", policy=POLICIES[policy]
    )
    before = flat(model)
    for _ in range(3):
        optimizer.zero_grad()
        target = torch.arange(6) % 3
        output = model(torch.randn(6, 1, 9, 9), torch.randn(6, 3, 3, 8, 8))[2]
        optimizer.balance(F.cross_entropy(output, target), target).backward()
        optimizer.step()
    after = flat(model)
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_a_function_reads_the_frames_as_a_layout_does():
    results = []
    for visual in (Encoder("visual_net", layout="(B T) D H W"), ("visual_net", per_frame)):
        torch.manual_seed(0)
        model = AVClassifier(Concat)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        encoders = {"audio": "audio_net", "visual": visual}
        optimizer = CGGMOptimizerWrapper(
            base, model, encoders=encoders, head="fusion_module.fc_out", policy=CGGM(smoothing=0.0)
        )
        target = torch.arange(6) % 3
        output = model(torch.randn(6, 1, 9, 9), torch.randn(6, 3, 3, 8, 8))[2]
        optimizer.balance(F.cross_entropy(output, target), target).backward()
        optimizer.step()
        results.append(optimizer.statistics["scores"])
    torch.testing.assert_close(*results)


def test_dropout_wants_the_number_of_frames_where_the_frames_come_first():
    torch.manual_seed(0)
    model = AVClassifier(Concat)
    model.audio_net, model.visual_net = (
        model.visual_net,
        model.audio_net,
    )  # whatever runs first is called audio
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    encoders = {"frames": Encoder("audio_net", layout="(B T) D H W"), "other": "visual_net"}
    _optimizer = CGGMOptimizerWrapper(  # while it lives, its hooks act
        base, model, encoders=encoders, head="fusion_module.fc_out", policy=ModalityDropout(0.5)
    )
    with pytest.raises(
        ValueError, match=r'write the number of rows of each sample into it, as in "\(B 3\) D H W"'
    ):
        model.audio_net(torch.randn(6, 3, 8, 8))


class Towers(nn.Module):
    """As MulT's projections: `[B, C, T]` by convolutions, attention across modalities afterwards."""

    def __init__(self):
        super().__init__()
        self.audio, self.text = nn.Conv1d(5, 8, 1, bias=False), nn.Conv1d(7, 8, 1, bias=False)
        self.cross = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, audio, text):
        audio, text = (
            tower(x.transpose(1, 2)).permute(2, 0, 1) for tower, x in ((self.audio, audio), (self.text, text))
        )
        return self.head(self.cross(audio, text, text)[0].mean(0))


@pytest.mark.parametrize("policy", POLICIES)
def test_towers_of_convolutions_over_time_learn(policy):
    torch.manual_seed(0)
    model = Towers()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    encoders = {"audio": "audio", "text": "text"}
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", policy=POLICIES[policy])
    target = torch.arange(12) % 3
    audio = F.one_hot(target, 5)[:, None].expand(12, 8, 5) + 0.1 * torch.randn(
        12, 8, 5
    )  # the class, in each position
    for _ in range(60):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(audio, torch.randn(12, 6, 7)), target), target).backward()
        optimizer.step()
    layout = optimizer._model.readers[0]._layout
    logits = model.unimodal_classifiers.audio(layout.to_positions(model.audio(audio.transpose(1, 2)), 12))
    assert layout.text == "B D T"
    assert (logits.argmax(1) == target).float().mean() > 0.8  # at chance where channels count as positions


class Parts(nn.Module):
    """The small model's encoders, cut in two modules each."""

    def __init__(self):
        super().__init__()
        whole = small_model()
        self.modalities = whole.modalities
        for m in self.modalities:
            layers = whole.encoders[m]
            self.add_module(f"{m}_body", layers[:2])
            self.add_module(f"{m}_projection", layers[2])
        self.fusion, self.head = whole.fusion, whole.head

    def forward(self, *inputs):
        features = [
            self.get_submodule(f"{m}_projection")(self.get_submodule(f"{m}_body")(x)).relu()
            for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


@pytest.mark.parametrize(
    ("policy", "apply"),
    [
        (CGGM(smoothing=0.0), "feature"),
        (CGGM(smoothing=0.0), "gradient"),
        (CGGM(smoothing=0.0), "update"),
        (AGM(), "auto"),
    ],
)
def test_an_encoder_of_several_modules_is_one(policy, apply):
    results = []
    for kind in (small_model, Parts):
        model = kind()
        torch.manual_seed(1)
        encoders = {
            m: f"encoders.{m}" if kind is small_model else [f"{m}_body", f"{m}_projection"]
            for m in model.modalities
        }
        optimizer = wrap(model, policy=policy, encoders=encoders, apply=apply)
        train(model, optimizer, steps=4)
        results.append(
            torch.cat(
                [
                    p.detach().flatten()
                    for name in ("fusion", "head")
                    for p in model.get_submodule(name).parameters()
                ]
            )
        )
    torch.testing.assert_close(*results)


def test_mmpareto_refuses_an_encoder_of_several_modules():
    model = Parts()
    encoders = {"audio": ["audio_body", "audio_projection"], "image": "image_body"}
    with pytest.raises(
        ValueError, match=r"encoders\['audio'\] is made of 2 modules, and MMPareto\(\) needs one"
    ):
        wrap(model, policy=MMPareto(), encoders=encoders)


@pytest.mark.parametrize(
    ("policy", "apply"), [*((name, "auto") for name in POLICIES), ("cggm", "gradient"), ("cggm", "update")]
)
def test_an_encoder_without_parameters_has_a_score_and_nothing_to_modulate(policy, apply):
    model = small_model()
    model.encoders["image"] = nn.Flatten()
    model.fusion = nn.Linear(4 + 6, 8)
    with pytest.warns(UserWarning, match="encoder 'image' is frozen"):
        optimizer = wrap(model, policy=POLICIES[policy], apply=apply)
    train(model, optimizer, steps=3)
    assert flat(model).isfinite().all()
    assert optimizer.statistics["scores"].shape == (2,)
