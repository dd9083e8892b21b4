"""A two-encoder model and the ways to train it that steps.py compares: joint, with classifiers, wrapped."""

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
    """Two transformers over sequences of vectors, and the batch.

    Attributes:
        width: of the tokens; a layer has 12 width² parameters.
        layers: per encoder; a layer has 12 tensors.
        tokens: per sequence.
        batch: sequences.
        autocast: whether the forward pass runs in bfloat16.
    """

    width: int
    layers: int
    tokens: int
    batch: int
    autocast: bool = True


FULL = Shape(640, 10, 128, 32)  # 98 million parameters in some 250 tensors
MANY_TENSORS = Shape(64, 10, 4, 4)  # as many tensors, so small that the host is what takes the time
SMALL = Shape(16, 2, 4, 4)


class Encoder(nn.Module):
    """Transformer layers, and the mean over the tokens."""

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
        """Features [B, width] of tokens [B, T, width]."""
        return self.norm(self.layers(tokens)).mean(1)


class TwoEncoders(nn.Module):
    """Audio and image tokens, concatenation, a head; returns the features, too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.audio, self.image = Encoder(shape), Encoder(shape)
        self.head = nn.Linear(2 * shape.width, CLASSES)

    def forward(self, audio: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, C] and the two features [B, width]."""
        features = [self.audio(audio), self.image(image)]
        return self.head(torch.cat(features, 1)), features


class Training:
    """A model, a batch and an optimizer; calling it takes one step.

    Args:
        way: one of `WAYS`.
        optimizer: one of `OPTIMIZERS`.
        shape: of model and batch.
        device: where.
        captured: whether the step is going to be captured in a CUDA graph, for which torch's own AdamW wants to
            keep its counters on the device.
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
        wrapped = way in WRAPPED  # whose fused step needs no capturable=True
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
        """The multimodal loss."""
        # Without its cache of weights, which would not outlive the capture of a graph.
        options = {"enabled": self.shape.autocast, "cache_enabled": False}
        with torch.autocast(self.device, torch.bfloat16, **options):
            logits, self.features = self.model(*self.inputs)
            return F.cross_entropy(logits, self.target)

    def balance(self, loss: Tensor) -> Tensor:
        """The loss with what is added to it."""
        if self.wrapper is not None:
            return self.wrapper.balance(loss, self.target)
        for classifier, features in zip(
            self.classifiers, self.features if self.classifiers else (), strict=True
        ):
            loss = loss + F.cross_entropy(classifier(features.detach().float()), self.target)
        return loss

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.balance(self.forward()).backward()
        self.features = []  # with them the graph: its nodes would meet the next step on another stream
        self.optimizer.step()


def _classifier(width: int) -> nn.Module:
    """As large as the wrapper's own: features to the head's input width, to the classes."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, CLASSES))
