"""The metrics that the papers report."""

from __future__ import annotations

import torch
from torch import Tensor


def classification(output: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy, and the F1 score averaged over the classes with their frequencies as weights.

    >>> classification(torch.eye(3), torch.tensor([0, 1, 1]))["accuracy"]
    0.6666666865348816
    """
    guess = output.argmax(1)
    total = 0.0
    for label in target.unique():
        hits = ((guess == label) & (target == label)).sum()
        f1 = 2 * hits / ((guess == label).sum() + (target == label).sum())
        total += float(f1 * (target == label).float().mean())
    return {"accuracy": float((guess == target).float().mean()), "f1": total}


def sentiment(output: Tensor, target: Tensor) -> dict[str, float]:
    """Negative mean absolute error (higher is better), the error, and accuracy of the sign of nonzero targets."""
    error = float((output.flatten() - target.flatten()).abs().mean())
    told = target.flatten() != 0
    signs = (output.flatten() > 0) == (target.flatten() > 0)
    return {
        "negative error": -error,
        "error": error,
        "sign": float(signs[told].float().mean()) if told.any() else float("nan"),
    }


def dice(guess: Tensor, target: Tensor) -> dict[str, float]:
    """Dice scores of nested regions: whole tumor (labels 1 to 3), core (1 and 3), enhancing (3)."""
    found = {}
    for name, labels in (("whole", (1, 2, 3)), ("core", (1, 3)), ("enhancing", (3,))):
        a, b = (torch.isin(x, torch.tensor(labels)) for x in (guess, target))
        size = int(a.sum() + b.sum())
        found[name] = 2 * int((a & b).sum()) / size if size else 1.0
    return found
