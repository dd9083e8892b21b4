"""What `diagnose` found: a table to print, pictures, a page and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModalityReport:
    """What was found about one modality; None where it cannot be measured, see `Report.notes`."""

    kind: str  # "starved", "near chance" or "well learnt"
    sentence: str
    alone: float  # score of a probe on the encoder trained alone
    inside: float  # the same of the joint model's encoder
    gap: float  # alone − inside: the imbalance
    masked_loss: float  # what the joint model's score loses with the features zeroed
    permuted_loss: float | None  # and with those of another sample
    shapley_share: float  # of the joint model's gain over all features zeroed; the shares add up to 1
    competition: float  # AGM's strength: how much worse it does inside the fusion than alone
    purity_gap: float | None  # of the joint encoder's clusters, training minus validation
    stops_at: int | None  # the step at which the loss inside the joint model stops falling
    stops_at_alone: int | None
    grad_norm: float  # of the encoder in joint training, mean over the steps
    angle: float  # degrees between the multimodal and the unimodal gradient, mean over the steps
    curves: dict[str, list[float]] = field(repr=False)  # by step


#: Row of the table -> field of `ModalityReport`, and whether it is a score.
_ROWS = {
    "trained alone": ("alone", True),
    "inside the joint model": ("inside", True),
    "gap: the imbalance": ("gap", True),
    "joint model loses if masked": ("masked_loss", True),
    "joint model loses if permuted": ("permuted_loss", True),
    "Shapley share": ("shapley_share", False),
    "competition strength": ("competition", False),
    "purity gap": ("purity_gap", False),
    "stops learning at step": ("stops_at", False),
    "stops learning at step, alone": ("stops_at_alone", False),
    "gradient norm": ("grad_norm", False),
    "gradients' angle, degrees": ("angle", False),
}


@dataclass(frozen=True)
class Report:
    """The verdict, and all figures behind it. Prints as a table, in color where rich is at hand."""

    overall: str  # one of `verdict.Overall`
    verdict: str
    modalities: dict[str, ModalityReport]
    joint: float  # validation score of the joint model
    fused_alone: float  # the same of a fusion on top of encoders trained alone
    chance: float  # the same of the best constant answer
    price: float  # time of a step with the default policy, in joint steps
    steps: int  # that both copies were trained
    percent: bool  # scores are shares, and are written in percent
    notes: tuple[str, ...]  # what could not be measured, and why

    def score(self, value: float | None) -> str:
        """A score as it is written."""
        if value is None:
            return "not measured"
        return f"{100 * value:.1f}" if self.percent else f"{value:.3g}"

    def _lines(self) -> Iterator[tuple[str, ...]]:
        yield ("", *self.modalities)
        for title, (name, is_score) in _ROWS.items():
            values = [getattr(each, name) for each in self.modalities.values()]
            yield (title, *(self.score(v) if is_score or v is None else f"{v:.3g}" for v in values))
        yield ("verdict", *(each.kind for each in self.modalities.values()))

    def _summary(self) -> str:
        return (
            f"joint model {self.score(self.joint)}, fusion of encoders trained alone {self.score(self.fused_alone)}, "
            f"chance {self.score(self.chance)}; {self.steps} steps; a balanced step takes {self.price:.2f} joint steps"
        )

    def __str__(self) -> str:
        lines = [
            f"{first:30} " + " ".join(f"{cell:>14}" for cell in cells) for first, *cells in self._lines()
        ]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, self._summary(), *notes, f"Verdict: {self.verdict}."])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        header, *rows = self._lines()
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        yield table
        yield escape(self._summary())
        for note in self.notes:
            yield f"[yellow]note[/]: {escape(note)}"
        yield f"[bold]Verdict[/]: {escape(self.verdict)}."

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write diagnosis.json, diagnosis.png and diagnosis.html, a page that needs no other file.

        Args:
            folder: made if there is none; files of these names are replaced.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; `pip install "cggm[demo]"` brings it.
        """
        from . import page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"diagnosis.{ending}" for ending in ("json", "png", "html")]
        picture = page.picture(self)
        paths[0].write_text(json.dumps(_finite(dataclasses.asdict(self)), indent=2) + "\n", encoding="utf-8")
        paths[1].write_bytes(picture)
        paths[2].write_text(page.html(self, list(self._lines()), self._summary(), picture), encoding="utf-8")
        return paths


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
