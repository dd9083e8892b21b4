"""`diagnose`: is a modality of this model starved, and is balancing worth its price?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..arguments import check_range
from ..tasks import Classification, MultiLabel, Regression, Segmentation, Task, find_task
from . import probes
from .report import ModalityReport, Report
from .training import Loss, Run, Setting, price, train
from .verdict import judge

_DENSE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Loader = Iterable[tuple[Any, Tensor]]


def diagnose(
    model: nn.Module,
    encoders: Mapping[str, Any],
    *,
    head: str | nn.Module,
    train_loader: Loader,
    validation_loader: Loader,
    task: str | Task = "classification",
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    epochs: int = 5,
    loss: Loss | None = None,
) -> Report:
    """Measure the imbalance between the modalities of a model, before any change to its training.

    A copy trains jointly, and in another copy every encoder trains on its own classifier alone, on the same batches
    from the same weights. The imbalance of a modality is the score of a linear probe on its encoder trained alone,
    minus that of a probe on the same encoder of the joint model. The report also has what the joint model loses without
    a modality, Shapley shares, AGM's competition strength, learning curves, and the price of a balanced step. What
    cannot be measured is in `report.notes`.

    Only copies train: model, optimizer and torch's random numbers stay as they were. The loaders are iterated several
    times. Python's and NumPy's random numbers advance if the loaders draw from them.

    Args:
        model: with the weights at which your training starts.
        encoders: modality -> encoder, as `CGGMOptimizerWrapper` takes them.
        head: the fusion's output layer, by name or module. All scores of the joint model are those of its output.
        train_loader: pairs of inputs (a tensor, a tuple of arguments or a mapping of keywords) and target `[B, ...]`.
        validation_loader: the same, of samples that are not trained on.
        task: as in the wrapper; its score is what is compared.
        optimizer: parameters -> optimizer, with the settings of your training; by default AdamW at 1e-3.
        epochs: `>= 1`, of both copies. Take as many as it takes until the joint model is no longer poor.
        loss: of the model's output and the target; by default the task's. A model that returns a mapping, as those of
            transformers, needs it: `lambda output, target: F.cross_entropy(output["logits"], target)`.

    Raises:
        ValueError: no epochs, an empty loader, or arguments that the wrapper refuses.
        TypeError: a loader that can be iterated only once, a mapping as the model's output without `loss`.

    Source: the gap is that of Wang et al., CVPR 2020, and Peng et al., CVPR 2022; competition strength: Li et al., ICCV
    2023; purity gap: Wei et al., ECCV 2024.

    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(8, 2)
    ...     def forward(self, a, b):
    ...         return self.head(torch.cat([self.a(a), self.b(b)], 1))
    >>> a, b = torch.randn(64, 3), torch.randn(64, 5)
    >>> batches = [((a, b), (a[:, 0] > 0).long())]
    >>> report = diagnose(Model(), {"a": "a", "b": "b"}, head="head", train_loader=batches,
    ...                   validation_loader=batches, epochs=2)
    >>> sorted(report.modalities)
    ['a', 'b']
    """
    check_range("epochs", epochs, 1)
    for name, loader in (("train_loader", train_loader), ("validation_loader", validation_loader)):
        if iter(loader) is loader:
            raise TypeError(
                f"{name} is iterated several times, and {type(loader).__name__} can be only once: pass a "
                "DataLoader or a list of batches"
            )
    task = find_task(task)
    make = optimizer or (lambda parameters: AdamW(parameters, lr=1e-3))
    setting = Setting((model, dict(encoders), head), task, loss or _of_tensors(task), make)
    devices = [setting.device] if setting.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        validation = list(setting.batches(validation_loader))
        if not validation:
            raise ValueError("validation_loader holds no batch")
        joint, alone = train(setting, train_loader, epochs)
        return _measure(setting, joint, alone, list(setting.batches(train_loader)), validation, train_loader)


def _of_tensors(task: Task) -> Loss:
    """The task's loss, which asks for `loss` where the model returns a mapping that a task of ours cannot read."""

    def loss(output: Any, target: Tensor) -> Tensor:
        if isinstance(output, Mapping) and isinstance(
            task, (Classification, MultiLabel, Regression, Segmentation)
        ):
            raise TypeError(
                f"loss: the model returns a mapping with {list(output)}, and the loss of {type(task).__name__} takes a "
                'tensor: pass loss=lambda output, target: F.cross_entropy(output["logits"], target), or the like'
            )
        return task.loss(output, target)

    return loss


def _measure(
    setting: Setting, joint: Run, alone: Run, seen: probes.Data, validation: probes.Data, loader: Loader
) -> Report:
    task, notes = setting.task, []
    names = joint.optimizer.modalities
    online, target = probes.classifier_outputs(alone, validation)
    inside, apart, chance, gaps = _probed(joint, alone, seen, validation, notes)
    try:
        found = probes.contributions(joint, validation)
        fusion = probes.contributions(alone, validation).score
    except RuntimeError as error:
        raise ValueError(
            f"diagnose() runs the fusion again with some features zeroed, and cannot: {error}"
        ) from error
    if found.permuted is None:
        notes.append("permuted: not measured, since the features' first axis does not hold the samples alone")
    strength = [
        s - own for s, own in zip(found.surprise, probes.surprises(task, online, target), strict=True)
    ]
    curves, steps = joint.recorder.history(), len(joint.recorder)
    separate = alone.recorder.history()["unimodal_losses"]
    modalities = {}
    ratio = price(setting, loader)
    percent = isinstance(task, (Classification, MultiLabel))
    scores = {name: (apart[i], inside[i]) for i, name in enumerate(names)}
    verdict = judge(scores, found.score, fusion, chance=chance, price=ratio, percent=percent)
    for i, name in enumerate(names):
        modalities[name] = ModalityReport(
            kind=verdict.kinds[name],
            sentence=verdict.sentences[name],
            alone=apart[i],
            inside=inside[i],
            gap=apart[i] - inside[i],
            masked_loss=found.score - found.masked[i],
            permuted_loss=None if found.permuted is None else found.score - found.permuted[i],
            shapley_share=found.shapley[i],
            competition=strength[i],
            purity_gap=None if gaps is None else gaps[i],
            stops_at=stops_learning(curves["unimodal_losses"][:, i]),
            stops_at_alone=stops_learning(separate[:, i]),
            grad_norm=curves["grad_norms"][:, i].mean().item(),
            angle=curves["angles"][:, i].nanmean().item(),
            curves={
                "loss in the joint model": curves["unimodal_losses"][:, i].tolist(),
                "loss alone": separate[:, i].tolist(),
                "gradient norm": curves["grad_norms"][:, i].tolist(),
                "angle": curves["angles"][:, i].tolist(),
            },
        )
    return Report(
        verdict.overall,
        verdict.sentence,
        modalities,
        found.score,
        fusion,
        chance,
        ratio,
        steps,
        percent,
        tuple(notes),
    )


def _probed(
    joint: Run, alone: Run, seen: probes.Data, validation: probes.Data, notes: list[str]
) -> tuple[list[float], list[float], float, list[float] | None]:
    """Scores of the probes on the joint model's encoders and on those alone, chance, and purity gaps."""
    task = joint.setting.task
    model = joint.optimizer._model
    if isinstance(model.module.get_submodule(model._head_path), _DENSE):
        notes.append(
            "probes: a linear layer on pooled features cannot predict a map; scores are those of the unimodal "
            "classifiers, trained along, and chance counts as 0"
        )
        notes.append("purity gap: not measured, it needs a class index per sample")
        inside, apart = (
            [float(task.score(output, target)) for output in outputs]
            for outputs, target in (probes.classifier_outputs(run, validation) for run in (joint, alone))
        )
        return inside, apart, 0.0, None
    outputs = model.head_weight.shape[0]
    found = []
    for run in (joint, alone):
        train, other = (
            probes.features_of(run, seen, "train_loader"),
            probes.features_of(run, validation, "validation"),
        )
        pairs = zip(train.values, other.values, strict=True)
        found.append(
            [probes.linear_probe(task, (x, train.target), (z, other.target), outputs) for x, z in pairs]
        )
        if run is joint:
            kept = train, other
    train, other = kept
    lowest = probes.chance(task, train.target, other.target, outputs)
    classes = train.target.ndim == 1 and not train.target.is_floating_point()
    if not classes or min(len(train.target), len(other.target)) < outputs:
        notes.append(
            "purity gap: not measured, it needs a class index per sample and as many samples as classes"
        )
        return found[0], found[1], lowest, None
    return found[0], found[1], lowest, probes.purity_gaps(train, other, outputs)


def stops_learning(losses: Tensor) -> int | None:
    """The step after which a loss falls by less than 5% of its whole fall; None if it never falls.

    The curve `[steps]` is smoothed over a twentieth of its length.

    >>> stops_learning(torch.tensor([1.0, 0.5, 0.1, 0.1, 0.1]))
    3
    """
    width = max(1, len(losses) // 20)
    smooth = losses.unfold(0, width, 1).mean(-1)
    fall = smooth[0] - smooth.min()
    if not fall > 0:
        return None
    return int((smooth <= smooth.min() + 0.05 * fall).nonzero()[0]) + width
