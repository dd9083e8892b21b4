"""What is measured on a trained model: accuracy, what its encoders learned, the memory of a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..datasets.experiment import Split, Splits

if TYPE_CHECKING:
    from torch.optim import Optimizer


BINS = 15  # of the expected calibration error


class Evaluation(NamedTuple):
    """Accuracy, cross entropy and macro-averaged F1 on one part; `correct` has a `1` for each row guessed right.

    `auc` is the area under the ROC curve, one class against the rest, averaged over the classes of the part; None where
    the part has one class or a logit is not finite. `ece` is the expected calibration error over 15 bins.
    """

    accuracy: float
    loss: float
    f1: float
    correct: str
    auc: float | None
    ece: float | None


@torch.no_grad()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Logits `[N, C]` in evaluation mode; the model is left in training mode."""
    model.eval()
    logits = model(*split.inputs)
    model.train()
    return logits


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of rows whose largest logit is the target's; the model is left in training mode."""
    return (predict(model, split).argmax(1) == split.target).double().mean().item()


def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """All figures of one part; the model is left in training mode.

    >>> logits = torch.eye(3)[[0, 1, 2, 0]]
    >>> found = evaluate(nn.Identity(), Split((logits,), torch.tensor([0, 1, 2, 2])))
    >>> found.accuracy, round(found.loss, 3), round(found.f1, 3), found.correct
    (0.75, 0.801, 0.778, '1110')
    """
    from sklearn.metrics import f1_score

    logits = predict(model, split)
    guess = logits.argmax(1)
    right = guess == split.target
    return Evaluation(
        right.double().mean().item(),
        F.cross_entropy(logits, split.target).item(),
        float(f1_score(split.target.numpy(), guess.numpy(), average="macro", zero_division=0)),
        "".join("01"[hit] for hit in right.tolist()),
        *_of_probabilities(logits.double().softmax(1), split.target),
    )


def _of_probabilities(probabilities: Tensor, target: Tensor) -> tuple[float | None, float | None]:
    """AUC and calibration error of probabilities `[N, C]`."""
    from sklearn.metrics import roc_auc_score

    if not probabilities.isfinite().all():
        return None, None
    areas = [
        roc_auc_score((target == label).numpy(), probabilities[:, label].numpy())
        for label in target.unique().tolist()
        if not (target == label).all()
    ]
    confidence, guess = probabilities.max(1)  # [N]
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    surplus = confidence - (guess == target).double()
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, surplus).abs()
    return (float(np.mean(areas)) if areas else None), float(gaps.sum() / len(target))


@torch.no_grad()
def probe(encoder: nn.Module, data: Splits, modality: int) -> float:
    """Test accuracy of a logistic regression on a frozen encoder's features of one modality."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    encoder.eval()
    train, test = (
        # A diverged encoder has no features: zeros leave the regression to guess.
        np.nan_to_num(encoder(split.inputs[modality]).numpy(), nan=0.0, posinf=0.0, neginf=0.0)
        for split in (data.train, data.test)
    )
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    regression.fit(train, data.train.target.numpy())
    return float(regression.score(test, data.test.target.numpy()))


def peak_bytes(model: nn.Module, optimizer: Optimizer, step: Callable[[], None]) -> int:
    """The largest number of bytes that tensors hold at any moment of a training step.

    Memory that an operator allocates and frees internally does not count.

    Args:
        model: its parameters and buffers count.
        optimizer: its state counts.
        step: takes one more step, gradients included; every tensor that it makes counts while it is alive.

    >>> layer = nn.Linear(250, 1, bias=False)
    >>> sgd = torch.optim.SGD(layer.parameters())
    >>> inputs = torch.ones(1, 250)
    >>> def step():
    ...     layer(inputs).sum().backward()
    ...     sgd.step()
    >>> 2000 <= peak_bytes(layer, sgd, step) < 4000                                   # the weight and its gradient
    True
    """
    optimizer.zero_grad(set_to_none=True)
    state = (value for values in optimizer.state.values() for value in values.values())
    held = [*model.parameters(), *model.buffers(), *(v for v in state if isinstance(v, Tensor))]
    with _LivingStorages(held) as storages:
        step()
    return storages.peak


class _LivingStorages(TorchDispatchMode):
    """Sums the sizes of all storages that operators return, for as long as they are alive."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: dict[int, weakref.ref] = {}
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._living:
            return

        def freed(_: weakref.ref) -> None:
            del self._living[place]
            self.now -= size

        self._living[place] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
