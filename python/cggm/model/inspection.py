"""`optimizer.explain()`: runs one batch and reports what the wrapper found in the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..junctions.selectors import as_selector, floating_tensors, select


@dataclass
class EncoderReport:
    """Findings about one modality from one batch."""

    modality: str
    module: str
    parameters: int = 0
    stepped: int = 0  # parameters that the optimizer has
    features: str = "not seen"  # where they are in the output, and their shape
    calls: int = 0
    seconds: float = 0.0  # of its forward pass
    multimodal: float | None = (
        None  # norm of the multimodal gradient at the features; None: it did not arrive
    )
    unimodal: float | None = None
    others: list[Any] = field(default_factory=list)  # further outputs that the multimodal loss uses
    classifier: str = ""

    def row(self, target: str, total: float, detached: bool) -> tuple[str, ...]:
        """The cells of a table, as `COLUMNS` names them."""
        return (
            self.modality,
            self.module,
            f"{self.parameters:,} ({self.stepped:,})",
            self.features + (f", and outputs {self.others}" if self.others else ""),
            _arrived(self.multimodal),
            "kept out by the policy" if detached else _arrived(self.unimodal),
            str(self.calls),
            self.classifier,
            target,
            f"{100 * self.seconds / total:.0f}%",
        )


COLUMNS = (
    "modality",
    "module",
    "parameters (in optimizer)",
    "features",
    "multimodal gradient",
    "unimodal gradient",
    "calls",
    "classifier (parameters)",
    "coefficient scales",
    "share of forward",
)


@dataclass(frozen=True)
class Explanation:
    """What one batch showed: a report per modality, and warnings. Prints as a table, in color where rich is at hand."""

    reports: tuple[EncoderReport, ...]
    scale_target: str
    warnings: tuple[str, ...]
    seconds: float  # of the whole forward pass
    detached: bool  # whether the policy keeps unimodal gradients from the encoders

    def _rows(self) -> list[tuple[str, ...]]:
        return [report.row(self.scale_target, self.seconds, self.detached) for report in self.reports]

    def _lines(self) -> Iterator[tuple[str, ...]]:
        """A line per property, a cell per modality: terminals are narrow, and modalities are few."""
        return zip(COLUMNS, *self._rows(), strict=True)

    def __str__(self) -> str:
        lines = [
            f"{name:26} " + "  ".join(f"{cell:30}" for cell in cells).rstrip()
            for name, *cells in self._lines()
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False)
        for line in self._lines():
            table.add_row(*line)
        yield table
        for text in self.warnings:
            yield f"[bold red]warning[/]: {escape(text)}"


def explain(optimizer: Any, forward: Callable[[], Tensor], target: Tensor) -> Explanation:
    """Run one batch through the wrapper, and tell what it finds; model, gradients and scores stay as they were.

    Args:
        optimizer: the `CGGMOptimizerWrapper`, before training or between two steps.
        forward: runs the model on the batch and returns the multimodal loss.
        target: the batch's target.
    """
    model, encoders = optimizer._model, optimizer._model.encoders
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    reports = []
    for index, (name, encoder) in enumerate(zip(encoders.names, encoders.modules(), strict=True)):
        own = [p for p, owner in encoders.encoder_parameters() if owner == index]
        classifier = model.classifiers.get_submodule(name)
        reports.append(
            EncoderReport(
                modality=name,
                module=f"{', '.join(encoders.paths[name])} ({type(encoder).__name__})",
                parameters=sum(p.numel() for p in own),
                stepped=sum(p.numel() for p in own if p in stepped),
                classifier=f"{type(classifier).__name__} ({sum(p.numel() for p in classifier.parameters()):,})",
            )
        )
    with _left_as_it_was(optimizer), _watching(encoders, reports):
        with torch.no_grad():
            forward()  # the first pass is slower than those to come, and counts for nothing
        for report in reports:
            report.calls, report.seconds = 0, 0.0
        start = time.perf_counter()
        loss = forward()
        seconds = time.perf_counter() - start
        for report, hook in zip(reports, encoders.hooks, strict=True):
            for captured in hook.features:  # of every run of the encoder
                if captured.requires_grad:
                    captured.register_hook(_note(report, "unimodal"))
        calls = [report.calls for report in reports]  # scoring may run the model again
        optimizer.balance(loss, target).backward()
        for report, count in zip(reports, calls, strict=True):
            report.calls = count
    plan = optimizer._plan
    return Explanation(
        tuple(reports),
        "nothing (no coefficients)" if plan.scale_at is None else f"the {plan.scale_at}",
        tuple(_warnings(reports, plan.detaches_features)),
        seconds,
        plan.detaches_features,
    )


@contextmanager
def _left_as_it_was(optimizer: Any) -> Iterator[None]:
    module = optimizer._model.module
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    gradients = [(p, p.grad) for p in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    statistics, guard = optimizer.statistics, optimizer._model.guard
    skipped, guard.skipped = guard.skipped, None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        for parameter, gradient in gradients:
            parameter.grad = gradient
        optimizer._model.forget()
        optimizer._state.clear()
        optimizer.statistics, guard.skipped = statistics, skipped


@contextmanager
def _watching(encoders: Any, reports: list[EncoderReport]) -> Iterator[None]:
    """Forward hooks that run after the wrapper's own, and so see the branch that the fusion gets."""
    handles = []
    for report, encoder, hook in zip(reports, encoders.modules(), encoders.hooks, strict=True):
        starts: list[float] = []

        def before(_module: nn.Module, _inputs: Any, starts: list[float] = starts) -> None:
            starts.append(time.perf_counter())

        def after(
            _module: nn.Module,
            _inputs: Any,
            output: Any,
            report: EncoderReport = report,
            hook: Any = hook,
            starts: list[float] = starts,
        ) -> None:
            report.seconds += time.perf_counter() - starts.pop()
            report.calls += 1
            features, path = select(output, hook.selector, hook.name)
            where = f"output={as_selector(path)!r} " if path else ""
            report.features = f"{where}{list(features.shape)}"
            if features.requires_grad:
                features.register_hook(_note(report, "multimodal"))
            for other, tensor in floating_tensors(output):
                if other != path and tensor is not features and tensor.requires_grad:
                    tensor.register_hook(partial(_note_other, report, as_selector(other)))

        handles += [encoder.register_forward_pre_hook(before), encoder.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(report: EncoderReport, name: str) -> Callable[[Tensor], None]:
    def note(gradient: Tensor | None) -> None:
        if gradient is not None:  # None: no loss has used this branch
            setattr(report, name, (getattr(report, name) or 0.0) + float(gradient.float().norm()))

    return note


def _note_other(report: EncoderReport, selector: Any, gradient: Tensor | None) -> None:
    if gradient is not None and selector not in report.others:
        report.others.append(selector)


def _arrived(norm: float | None) -> str:
    return "none" if norm is None else f"{norm:.3g}"


def _warnings(reports: list[EncoderReport], detached: bool) -> Iterator[str]:
    for report in reports:
        name = report.modality
        if report.multimodal is None and report.others:
            yield (
                f"encoder {name!r}: the multimodal loss does not use the features that were captured, but output "
                f"{report.others}: pass Encoder(..., output={report.others[0]!r})"
            )
        elif report.multimodal is None:
            yield f"encoder {name!r}: no multimodal gradient arrives: it is frozen, or the model ignores its output"
        if not detached and report.unimodal is None:
            yield f"encoder {name!r}: the unimodal gradient does not arrive"
        if 0 < report.stepped < report.parameters:
            yield (
                f"encoder {name!r}: the optimizer has {report.stepped:,} of its {report.parameters:,} parameters; the "
                "others do not learn"
            )
        elif not report.stepped and report.parameters:
            yield f"encoder {name!r}: the optimizer has none of its parameters; there is nothing to modulate"
