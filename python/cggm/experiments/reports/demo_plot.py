"""The demo's picture: coefficients, scores and test accuracy during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..output import replacing
from ..training.results import History

# Okabe and Ito's colors, which color-blind readers can tell apart.
MODALITY_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
METHOD_COLOUR, JOINT_COLOUR = "#009E73", "#6B6B6B"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}


def shown_method(histories: Sequence[History]) -> str | None:
    """The method to draw: CGGM if it was run, else the first one with coefficients."""
    names = [h.method for h in histories if "coefficients" in h.statistics]
    return "cggm" if "cggm" in names else next(iter(names), None)


def plot(histories: Sequence[History], path: Path) -> None:
    """Coefficients, scores and test accuracy over the steps: one row per optimizer, the spread over seeds shaded.

    Args:
        histories: at least one, of any seeds, methods and optimizers.
        path: the file to write.

    Raises:
        ValueError: no histories.
    """
    if not histories:
        raise ValueError("histories is empty: run the jobs with history=True")
    from matplotlib import rc_context

    optimizers = list(dict.fromkeys(h.optimizer for h in histories))
    method = shown_method(histories)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.5 + 2.5 * len(optimizers)), layout="constrained")
        grid = figure.subplots(len(optimizers), 3, sharex=True, sharey="col", squeeze=False)
        for axes, optimizer in zip(grid, optimizers, strict=True):
            chosen = [h for h in histories if h.optimizer == optimizer]
            balanced = [h for h in chosen if h.method == method]
            _modalities(axes[0], balanced, "coefficients")
            _modalities(axes[1], balanced, "scores")
            _accuracies(axes[2], chosen, method)
            axes[0].set_ylabel(optimizer_title(optimizer), fontweight="bold", fontsize=11, labelpad=8)
        titles = ("Coefficient of each encoder", "Score of each unimodal classifier", "Test accuracy in %")
        for axis, title in zip(grid[0], titles, strict=True):
            axis.set_title(title, loc="left")
        for axis in grid[-1]:
            axis.set_xlabel("training step")
        seeds = len({h.seed for h in histories})
        spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
        figure.suptitle(f"{method_title(method)}: {spread}", fontweight="bold", x=0.02, ha="left")
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=160)


def optimizer_title(name: str) -> str:
    """Name of an optimizer in tables and pictures.

    >>> optimizer_title("sgd"), optimizer_title("adam")
    ('SGD', 'Adam')
    """
    return name.upper() if len(name) <= 3 else name.capitalize()


def method_title(name: str | None) -> str:
    """Name of a method in pictures; None is joint training.

    >>> method_title("cggm-paper")
    'CGGM paper'
    """
    return "Joint training" if name is None else name.replace("-", " ").replace("cggm", "CGGM")


def _modalities(axis: Axes, histories: Sequence[History], statistic: str) -> None:
    """One line per modality, averaged over the steps of each epoch, since single batches are noisy."""
    if not histories:
        return
    runs = np.stack([h.statistics[statistic] for h in histories])  # [seeds, steps, M]
    per_epoch = histories[0].steps_per_epoch
    epochs = runs.reshape(len(runs), -1, per_epoch, runs.shape[2]).mean(2)  # [seeds, epochs, M]
    center = (np.arange(epochs.shape[1]) + 0.5) * per_epoch
    for i, modality in enumerate(histories[0].modalities):
        _band(axis, center, epochs[:, :, i], MODALITY_COLOURS[i % len(MODALITY_COLOURS)], modality)
    if statistic == "coefficients":
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.legend(loc="upper right" if statistic == "coefficients" else "lower right")


def _accuracies(axis: Axes, histories: Sequence[History], method: str | None) -> None:
    """Joint training and the method, and their final difference paired by seed."""
    curves = {}
    for name, color in (("joint", JOINT_COLOUR), (method, METHOD_COLOUR)):
        chosen = sorted((h for h in histories if h.method == name), key=lambda h: h.seed)
        if chosen:
            values = 100 * np.stack([h.accuracy for h in chosen])  # [seeds, epochs]
            steps = (np.arange(values.shape[1]) + 1) * chosen[0].steps_per_epoch
            _band(axis, steps, values, color, method_title(name) if name != "joint" else "joint")
            curves[name] = values
    if len(curves) == 2 and len(curves["joint"]) > 1:
        gain = curves[method][:, -1] - curves["joint"][:, -1]  # [seeds]
        note = f"at the end {gain.mean():+.1f} ± {gain.std(ddof=1):.1f}\npaired by seed"
        axis.text(0.97, 0.36, note, transform=axis.transAxes, ha="right", va="bottom", color="#444444")
    if curves:  # leave out the first epochs, which rise from chance with every method
        axis.set_ylim(max(0, min(values[:, -1].min() for values in curves.values()) - 15), 100)
        axis.legend(loc="lower right")


def _band(
    axis: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], color: str, label: str
) -> None:
    """Mean and standard deviation of `values` `[seeds, len(steps)]`."""
    mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0.0
    axis.plot(steps, mean, color=color, label=label)
    axis.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
