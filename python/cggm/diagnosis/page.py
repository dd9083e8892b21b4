"""The pictures of a diagnosis, and the page around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report

_COLORS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#000000")
_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td,th{text-align:right;padding:.2em 1em;"
    "border-bottom:1px solid #ddd}td:first-child{text-align:left}img{max-width:100%}.verdict{font-size:1.2em}"
)


def picture(report: Report) -> bytes:
    """Scores alone and inside the joint model, contributions and learning curves, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    names, found = list(report.modalities), list(report.modalities.values())
    factor = 100 if report.percent else 1
    for shift, key, label, color in (
        (-0.2, "alone", "alone", "#56B4E9"),
        (0.2, "inside", "inside the joint model", "#009E73"),
    ):
        places = [i + shift for i in range(len(names))]
        heights = [factor * getattr(each, key) - factor * report.chance for each in found]
        axes[0].bar(places, heights, 0.4, bottom=factor * report.chance, label=label, color=color)
    axes[0].axhline(factor * report.joint, color="black", linestyle=":", label="joint model")
    axes[0].set_title("score of each encoder, above chance", loc="left")
    axes[1].bar(
        range(len(names)), [each.shapley_share for each in found], 0.5, color=_COLORS[: len(names)] * 2
    )
    axes[1].set_title("Shapley share", loc="left")
    for axis in axes[:2]:
        axis.set_xticks(range(len(names)), names)
    axes[0].legend(loc="lower center", framealpha=0.9)
    for axis, key in zip(
        axes[2:], ("loss in the joint model", "loss alone", "gradient norm", "angle"), strict=True
    ):
        for i, (name, each) in enumerate(report.modalities.items()):
            values = each.curves[key]
            size = -(-len(values) // 100)
            parts = [values[j : j + size] for j in range(0, len(values), size)]
            steps = [j * size + len(part) / 2 for j, part in enumerate(parts)]
            axis.plot(steps, [sum(p) / len(p) for p in parts], label=name, color=_COLORS[i % len(_COLORS)])
        axis.set_title(
            "angle of the two gradients, degrees"
            if key == "angle"
            else f"unimodal {key}"
            if key.startswith("loss")
            else key,
            loc="left",
        )
        axis.set_xlabel("step")
        axis.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def html(report: Report, lines: Sequence[Sequence[str]], summary: str, image: bytes) -> str:
    """One page with the verdict, the table and the picture inside."""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    data = base64.b64encode(image).decode()
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Diagnosis</title><style>{_STYLE}</style>"
        f"<h1>Diagnosis</h1><p class=verdict>{escape(report.verdict)}.</p><table>{rows}</table><p>{escape(summary)}</p>"
        f"<ul>{notes}</ul><img alt='scores, contributions and curves' src='data:image/png;base64,{data}'></html>\n"
    )
