"""Models and losses that no unimodal classifier fits: several heads, detection, single-stream transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import FlavaConfig, FlavaModel, ViltConfig, ViltForQuestionAnswering

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, MaskedScores
from cggm.policies import MLB, OPM
from helpers import batches, flat

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION, TEXT = {"image_size": 16, "patch_size": 8}, {"vocab_size": 50, "max_position_embeddings": 8}
NAMES = {"audio": "audio", "image": "image"}


def masked(model, policy, encoders=NAMES, **options):
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    scores = MaskedScores(every=2)
    return CGGMOptimizerWrapper(base, model, encoders=encoders, scores=scores, policy=policy, **options)


class Encoders(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.image, self.fusion = nn.Linear(8, 4), nn.Linear(6, 4), nn.Linear(8, 8)

    def joint(self, audio, image):
        return self.fusion(torch.cat([self.audio(audio), self.image(image)], 1)).relu()


class Heads(Encoders):
    """A class and a number, from two heads."""

    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, audio, image):
        joint = self.joint(audio, image)
        return {"kind": self.kind(joint), "size": self.size(joint)}


def both(output, target):
    return F.cross_entropy(output["kind"], target["kind"]) + F.mse_loss(output["size"], target["size"])


class Detector(Encoders):
    """Three boxes per picture; its loss takes a list of what is there, one dict per picture, as detectors do."""

    def __init__(self):
        super().__init__()
        self.boxes, self.labels = nn.Linear(8, 3 * 4), nn.Linear(8, 3 * 5)

    def forward(self, audio, image, targets):
        joint = self.joint(audio, image)
        boxes, logits = self.boxes(joint).unflatten(1, (3, 4)), self.labels(joint).unflatten(1, (3, 5))
        losses = [
            F.l1_loss(b[: len(t["boxes"])], t["boxes"]) + F.cross_entropy(x[: len(t["boxes"])], t["labels"])
            for b, x, t in zip(boxes, logits, targets, strict=True)
        ]
        return {"loss": torch.stack(losses).mean(), "boxes": boxes}


@pytest.mark.parametrize("policy", [CGGM(smoothing=0.0), MLB(), OPM()], ids=["CGGM", "MLB", "OPM"])
def test_several_heads(policy):
    torch.manual_seed(0)
    model = Heads()
    optimizer = masked(model, policy, task=both)
    for (audio, image), kind in batches(5):
        target = {"kind": kind, "size": audio[:, :1]}
        optimizer.zero_grad()
        optimizer.balance(both(model(audio, image), target), target).backward()
        optimizer.step()
    assert optimizer.statistics["scores"].isfinite().all()
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("policy", [CGGM(smoothing=0.0), MLB()], ids=["CGGM", "MLB"])
def test_detection_with_a_list_of_targets(policy):
    torch.manual_seed(0)
    model = Detector()
    optimizer = masked(model, policy)
    losses = []
    for (audio, image), _ in batches(150):
        targets = [
            {"boxes": x[:4].repeat(1 + i % 3, 1), "labels": torch.arange(1 + i % 3)}
            for i, x in enumerate(audio)
        ]
        loss = model(audio, image, targets)["loss"]
        optimizer.zero_grad()
        optimizer.balance(loss, targets).backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    audio, image = optimizer.statistics["scores"].tolist()
    assert audio > image  # the boxes are in the audio


def test_a_single_stream_transformer_is_balanced_at_its_embeddings():
    """ViLT has no encoders but embeddings: their gradients are what there is to balance."""
    torch.manual_seed(0)
    model = ViltForQuestionAnswering(ViltConfig(**TOWER, **VISION, **TEXT, num_labels=4))
    names = {"text": "vilt.embeddings.text_embeddings", "image": "vilt.embeddings.patch_embeddings"}
    optimizer = masked(model, CGGM(smoothing=0.0), names)
    pixels, everywhere = torch.randn(4, 3, 16, 16), torch.ones(4, 16, 16, dtype=torch.long)
    for _ in range(3):
        words, labels = torch.randint(1, 50, (4, 8)), torch.eye(4)
        loss = model(input_ids=words, pixel_values=pixels, pixel_mask=everywhere, labels=labels).loss
        optimizer.zero_grad()
        optimizer.balance(loss, labels).backward()
        optimizer.step()
    assert optimizer.statistics["scores"].isfinite().all()
    assert not torch.equal(optimizer.statistics["coefficients"], torch.ones(2))


class Flava(nn.Module):
    def __init__(self):
        super().__init__()
        parts = {"text_config": {**TOWER, **TEXT}, "image_config": {**TOWER, **VISION}}
        self.flava = FlavaModel(
            FlavaConfig(**parts, multimodal_config=TOWER, hidden_size=16, projection_dim=8)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, words, pixels):
        return self.head(self.flava(input_ids=words, pixel_values=pixels).multimodal_embeddings[:, 0])


@pytest.mark.parametrize(
    "output", [None, ("hidden_states", -1)], ids=["the wrong output", "the right output"]
)
def test_flava_uses_the_last_hidden_states(output):
    torch.manual_seed(0)
    model = Flava()
    names = {name: Encoder(f"flava.{name}_model", output=output) for name in ("text", "image")}
    optimizer = masked(model, CGGM(), names)
    target = torch.arange(6) % 3
    loss = F.cross_entropy(model(torch.randint(1, 50, (6, 8)), torch.randn(6, 3, 16, 16)), target)
    optimizer.balance(loss, target).backward()
    if output is None:
        with pytest.raises(RuntimeError, match=r"came back through \('hidden_states', 1\) alone"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.statistics["scores"].isfinite().all()
