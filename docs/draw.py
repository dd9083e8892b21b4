"""Draws the figures of the documentation: `python docs/draw.py` writes docs/figures/*.svg."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#555555"


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
    axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=style, color="#222222")


def _arrow(axes: Axes, start: tuple, end: tuple, text: str = "", color: str = GREY, style: str = "-") -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4, "linestyle": style}
    )
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.14
        axes.text(*middle, text, ha="center", fontsize=9, color=color)


def overview() -> Figure:
    """What joint and balanced training leave in the encoders: the README's table of digits with SGD."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = (
        ("audio encoder alone", 89.9, GREY),
        ("in joint training", 66.0, ORANGE),
        ("balanced", 87.0, BLUE),
    )
    for place, (_, value, color) in enumerate(reversed(bars)):
        axes.barh(place, value, color=color, height=0.6)
        axes.text(value - 1, place, f"{value:.1f} %", ha="right", va="center", color="white", fontsize=11)
    axes.set_yticks(range(3), [name for name, *_ in reversed(bars)], fontsize=11)
    axes.set(
        xlim=(0, 100), xlabel="accuracy of a linear probe on the audio encoder, spoken and handwritten digits"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def junction() -> Figure:
    """Forward and backward through the junction of one encoder."""
    figure, axes = _canvas(8.6, 3.6)
    _box(axes, 0.8, 1.8, "audio", GREY)
    _box(axes, 2.3, 1.8, "encoder", BLUE)
    _box(axes, 4.0, 1.8, "junction", ORANGE)
    _box(axes, 5.9, 2.9, "fusion and head", GREY)
    _box(axes, 5.9, 0.7, "unimodal classifier", GREY)
    _box(axes, 7.9, 2.9, "loss", GREY)
    _box(axes, 7.9, 0.7, "unimodal\nloss, score", GREY)
    _arrow(axes, (1.2, 1.8), (1.75, 1.8))
    _arrow(axes, (2.85, 1.9), (3.45, 1.9), "features")
    _arrow(axes, (4.4, 2.1), (5.0, 2.75))
    _arrow(axes, (4.4, 1.5), (4.95, 0.85))
    _arrow(axes, (6.85, 2.95), (7.55, 2.95))
    _arrow(axes, (6.95, 0.75), (7.25, 0.75))
    _arrow(axes, (5.1, 2.45), (4.55, 1.85), "", ORANGE, "--")
    axes.text(5.3, 2.1, "multimodal gradient", fontsize=9, color=ORANGE)
    _arrow(axes, (5.05, 1.1), (4.55, 1.6), "", ORANGE, "--")
    axes.text(5.3, 1.4, "unimodal gradient", fontsize=9, color=ORANGE)
    _arrow(axes, (3.45, 1.65), (2.85, 1.65), "", ORANGE, "--")
    axes.text(3.15, 1.35, "combined", ha="center", fontsize=9, color=ORANGE)
    return figure


def step() -> Figure:
    """The order of events in one training step."""
    figure, axes = _canvas(8.6, 1.9)
    events = (
        ("forward", "junctions keep\nthe features"),
        ("balance()", "scores and\ncoefficients"),
        ("backward()", "gradients meet\nin the junctions"),
        ("modulate()", "coefficients on\ngradients"),
        ("step()", "update, policy\nstate committed"),
    )
    for place, (name, text) in enumerate(events):
        x = 0.85 + 1.72 * place
        _box(axes, x, 1.35, name, BLUE)
        axes.text(x, 0.5, text, ha="center", va="center", fontsize=9, color=GREY)
        if place:
            _arrow(axes, (x - 1.12, 1.35), (x - 0.62, 1.35))
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "cggm"  # the same file at every run
    for make in (overview, junction, step):
        make().savefig(FOLDER / f"{make.__name__}.svg", metadata={"Date": None})
