"""Trains one of the papers' experiments: selects the epoch on validation data, and reports on test data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from cggm import CGGM, CGGMOptimizerWrapper, ClassifierScores, Encoder
from cggm.experiments.training.methods import METHODS, Method, choose_methods

Metrics = dict[str, float]
Sample = tuple[tuple[Tensor, ...], Tensor]  # an input per modality, and the target


class Data(NamedTuple):
    """The three parts, each a map-style data set of samples."""

    train: Dataset
    validation: Dataset
    test: Dataset


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper's experiment: data, model and hyper-parameters.

    Args:
        name: name of the experiment.
        data: the three parts.
        model: the model, `model(*inputs) -> output`.
        encoders: modality -> dotted name.
        head: dotted name of the output layer.
        classifiers: modality -> unimodal classifier; None for the default ones.
        task: as the optimizer wrapper takes it; its loss trains the model, too.
        optimizer: parameters -> optimizer.
        metrics: outputs and targets of a whole part -> metrics; the first one, higher is better, chooses the epoch.
        classifier_group: learning rate and other settings of the classifiers' parameter group.
        scheduler: optimizer -> learning rate scheduler, stepped once per epoch; None for a constant rate.
        predict: batch of outputs -> what the metrics need of it.
        batch_size: samples per step.
        epochs: passes over the training part.
        clip: norm to which the gradients are clipped; None for no clipping.
        rho: ρ of the paper's policy.
        lam: λ of the paper's policy.
    """

    name: str
    data: Data
    model: nn.Module
    encoders: Mapping[str, str]
    head: str
    classifiers: Mapping[str, nn.Module] | None
    task: Any
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    metrics: Callable[[Tensor, Tensor], Metrics]
    classifier_group: Mapping[str, float]
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    predict: Callable[[Tensor], Tensor] = torch.Tensor.float
    batch_size: int = 64
    epochs: int = 30
    clip: float | None = 0.8
    rho: float = 1.3
    lam: float = 0.2


def method_of(recipe: Recipe, policy: str) -> Method:
    """The method of this name; the published forms take the recipe's own ρ and λ.

    Raises:
        ValueError: an unknown name.
    """
    published = {"cggm-paper": CGGM.paper, "cggm-released": CGGM.released}
    if policy in published:
        return Method(published[policy](rho=recipe.rho, lam=recipe.lam))
    return check_policy(policy)


def check_policy(policy: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: an unknown name, or a method that is no policy but changes the model or the learning rates.
    """
    method = choose_methods([policy]).get(policy)
    if method is None or (method.policy is None and policy != "joint"):
        allowed = ["joint", *(name for name, known in METHODS.items() if known.policy is not None)]
        raise ValueError(f"policy must be one of {allowed}, got {policy!r}")
    return method


def collate(samples: list[Sample]) -> tuple[list[Tensor], Tensor]:
    """A batch; shorter sequences are padded with zeros."""
    inputs, targets = zip(*samples, strict=True)
    stacked = []
    for values in zip(*inputs, strict=True):
        same = len({value.shape for value in values}) == 1
        stacked.append(torch.stack(values) if same else pad_sequence(list(values), batch_first=True))
    return stacked, torch.stack(targets)


def run(
    recipe: Recipe, policy: str, *, seed: int = 0, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Train with a policy and test the epoch that does best on the validation part.

    Args:
        recipe: the experiment; its model is trained in place.
        policy: name of a method.
        seed: seed of the batches and of random numbers in training; the model has its weights already.
        report: called with a line per epoch.

    Returns:
        Metrics of the `validation` and the `test` part, and the `epoch` that was tested.

    Raises:
        ValueError: an unknown policy, or a part without samples.
    """
    for part, samples in zip(Data._fields, recipe.data, strict=True):
        if len(samples) == 0:  # type: ignore[arg-type]
            raise ValueError(f"data: the {part} part of {recipe.name} is empty")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = recipe.model.to(device)
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _wrap(recipe, method_of(recipe, policy), model, recipe.optimizer(parameters))
    scheduler = recipe.scheduler(optimizer) if recipe.scheduler else None
    batches = DataLoader(recipe.data.train, recipe.batch_size, shuffle=True, collate_fn=collate)
    best: tuple[float, int, Metrics, dict] | None = None
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for inputs, target in batches:
            target = target.to(device)
            _step(recipe, model, optimizer, [x.to(device) for x in inputs], target, parameters)
        if scheduler is not None:
            scheduler.step()
        found = evaluate(recipe, model, recipe.data.validation, device)
        report(f"epoch {epoch}: " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
        score = next(iter(found.values()))
        if best is None or score > best[0]:
            best = (score, epoch, found, copy.deepcopy(model.state_dict()))
    model.load_state_dict(best[3])
    test = evaluate(recipe, model, recipe.data.test, device)
    return {
        "experiment": recipe.name,
        "policy": policy,
        "epoch": best[1],
        "validation": best[2],
        "test": test,
    }


def _wrap(
    recipe: Recipe, method: Method, model: nn.Module, optimizer: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    if method.policy is None:
        return optimizer
    wrapped = CGGMOptimizerWrapper(
        optimizer,
        model,
        encoders={
            name: Encoder(encoder, classifier=recipe.classifiers and recipe.classifiers[name])
            for name, encoder in recipe.encoders.items()
        },
        head=recipe.head,
        policy=method.policy,
        task=recipe.task,
        apply=method.apply,
        scores=ClassifierScores(lr=recipe.classifier_group["lr"]),
    )
    wrapped.param_groups[-1].update(recipe.classifier_group)
    return wrapped


def _step(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: list[Tensor],
    target: Tensor,
    parameters: list[nn.Parameter],
) -> None:
    optimizer.zero_grad()
    loss = recipe.task.loss(model(*inputs), target)
    balanced = isinstance(optimizer, CGGMOptimizerWrapper)
    if balanced:
        loss = optimizer.balance(loss, target)
    loss.backward()
    if recipe.clip is not None:
        if balanced:
            optimizer.modulate()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
    optimizer.step()


@torch.no_grad()
def evaluate(recipe: Recipe, model: nn.Module, part: Dataset, device: str) -> Metrics:
    """The recipe's metrics over a whole part."""
    model.eval()
    outputs, targets = [], []
    for inputs, target in DataLoader(part, recipe.batch_size, collate_fn=collate):
        outputs.append(recipe.predict(model(*(x.to(device) for x in inputs))).cpu())
        targets.append(target)
    return recipe.metrics(torch.cat(outputs), torch.cat(targets))
