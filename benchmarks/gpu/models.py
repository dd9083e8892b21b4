"""A model with two encoders, and the ways of training that steps.py compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, ModalityDropout, NormEqualization

CLASSES = 100
JOINT, BY_HAND = "joint", "joint and hand-written classifiers"
FLATTENED = 'CGGM(), apply="gradient", flatten_gradients()'
WRAPPED: dict[str, Callable[[], dict[str, Any]]] = {  # the wrapper's options
    "CGGM()": lambda: {"policy": CGGM()},
    'CGGM(), apply="gradient"': lambda: {"policy": CGGM(), "apply": "gradient"},
    FLATTENED: lambda: {"policy": CGGM(), "apply": "gradient"},
    "NormEqualization() + ModalityDropout(0.2)": lambda: {
        "policy": NormEqualization() + ModalityDropout(0.2)
    },
}
WAYS = (JOINT, BY_HAND, *WRAPPED)
Make = Callable[[Iterable[nn.Parameter], bool], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p, capturable: torch.optim.AdamW(p, lr=1e-4, fused=True, capturable=capturable),
    "SGD": lambda p, capturable: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of the two transformers and of the batch.

    Attributes:
        width: elements of a token; a layer has 12 width² parameters.
        layers: layers per encoder; a layer has 12 tensors.
        tokens: tokens per sequence.
        batch: sequences per batch.
        autocast: whether the forward pass runs in bfloat16.
    """

    width: int
    layers: int
    tokens: int
    batch: int
    autocast: bool = True


FULL = Shape(640, 10, 128, 32)  # 98 million parameters in some 250 tensors
MANY_TENSORS = Shape(64, 10, 4, 4)  # as many tensors, but so small that host time dominates
SMALL = Shape(16, 2, 4, 4)


class Encoder(nn.Module):
    """Transformer layers and the mean over the tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        heads = max(1, shape.width // 64)
        layers = [
            nn.TransformerEncoderLayer(shape.width, heads, 4 * shape.width, **options)
            for _ in range(shape.layers)
        ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features [B, width] of tokens [B, T, width]."""
        return self.norm(self.layers(tokens)).mean(1)


class TwoEncoders(nn.Module):
    """Encoders of audio and image tokens, and a head on the concatenated features."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.audio, self.image = Encoder(shape), Encoder(shape)
        self.head = nn.Linear(2 * shape.width, CLASSES)

    def forward(self, audio: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [B, C] and the two features [B, width]."""
        features = [self.audio(audio), self.image(image)]
        return self.head(torch.cat(features, 1)), features


class Training:
    """A model, a batch and an optimizer; calling it takes one step.

    Args:
        way: one of `WAYS`.
        optimizer: one of `OPTIMIZERS`.
        shape: sizes of the model and the batch.
        device: where everything is.
        captured: whether the step will be captured in a CUDA graph, which needs the counters of torch's own AdamW
            on the device.
    """

    def __init__(
        self, way: str, optimizer: str, shape: Shape, device: str, *, captured: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.device, self.shape = device, shape
        self.model = TwoEncoders(shape).to(device)
        size = (shape.batch, shape.tokens, shape.width)
        self.inputs = [torch.randn(size, device=device) for _ in range(2)]
        self.target = torch.randint(CLASSES, (shape.batch,), device=device)
        self.classifiers = [_classifier(shape.width).to(device) for _ in range(2)] if way == BY_HAND else []
        own = [p for classifier in self.classifiers for p in classifier.parameters()]
        wrapped = way in WRAPPED  # its fused step needs no capturable=True
        base = OPTIMIZERS[optimizer]([*self.model.parameters(), *own], captured and not wrapped)
        self.optimizer = base
        self.wrapper: CGGMOptimizerWrapper | None = None
        if wrapped:
            encoders = {"audio": "audio", "image": "image"}
            self.optimizer = self.wrapper = CGGMOptimizerWrapper(
                base, self.model, encoders=encoders, head="head", **WRAPPED[way]()
            )
            if way == FLATTENED:
                self.wrapper.flatten_gradients()

    def forward(self) -> Tensor:
        """Return the multimodal loss."""
        # The cache of converted weights must not outlive the capture of a graph.
        options = {"enabled": self.shape.autocast, "cache_enabled": False}
        with torch.autocast(self.device, torch.bfloat16, **options):
            logits, self.features = self.model(*self.inputs)
            return F.cross_entropy(logits, self.target)

    def balance(self, loss: Tensor) -> Tensor:
        """Return the loss with everything that is added to it."""
        if self.wrapper is not None:
            return self.wrapper.balance(loss, self.target)
        for classifier, features in zip(
            self.classifiers, self.features if self.classifiers else (), strict=True
        ):
            loss = loss + F.cross_entropy(classifier(features.detach().float()), self.target)
        return loss

    def __call__(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.balance(self.forward()).backward()
        self.features = []  # frees the autograd graph, whose nodes belong to the stream of this step
        self.optimizer.step()


def _classifier(width: int) -> nn.Module:
    """Return a classifier as large as the wrapper's own."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, CLASSES))
