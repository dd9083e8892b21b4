"""`cggm experiment`: one of the papers' experiments from the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from cggm.experiments.methods import choose_methods

from . import brats, cremad, food101, iemocap, mosi
from .recipe import Recipe, run


@dataclass(frozen=True, kw_only=True)
class PaperExperiment:
    """Train one of the papers' experiments on data that you have, with the papers' hyper-parameters.

    The epoch that does best on the validation part is the one that is tested. Writes the result to
    <name>-<policy>-<seed>.json. Needs the extra cggm[papers].

    Args:
        name: Which experiment.
        data: Where the data are; see the module of the experiment for the format.
        policy: The name of a method, as in cggm compare; cggm-paper and cggm-released take the paper's rho and lambda.
        seed: Of weights and batches.
        epochs: Instead of the paper's.
        batch_size: Instead of the paper's.
        fold: Of IEMOCAP's cross-validation.
        models: Food 101's frozen models, folders or names: ViT, then BERT.
        out: The folder for the result.
    """

    name: Annotated[Literal["food101", "mosi", "iemocap", "brats", "cremad"], tyro.conf.Positional]
    data: Path
    policy: str = "cggm"
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    fold: int = 1
    models: tuple[str, str] = ("google/vit-base-patch16-224-in21k", "bert-base-uncased")
    out: Path = Path()


def recipe_of(experiment: PaperExperiment) -> Recipe:
    """The recipe, its data read and its model made from the seed.

    Raises:
        ValueError: the data are missing or are something else; an unknown policy;
            fewer than one epoch or sample.
    """
    for name in ("epochs", "batch_size"):
        value = getattr(experiment, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    choose_methods([experiment.policy])
    torch.manual_seed(experiment.seed)
    path = experiment.data
    if experiment.name == "food101":
        recipe = food101.build(path, vit=experiment.models[0], bert=experiment.models[1])
    elif experiment.name == "iemocap":
        recipe = iemocap.build(path, fold=experiment.fold)
    else:
        recipe = {"mosi": mosi, "brats": brats, "cremad": cremad}[experiment.name].build(path)
    changes = {"epochs": experiment.epochs, "batch_size": experiment.batch_size}
    return dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})


def run_experiment(experiment: PaperExperiment) -> dict[str, Any]:
    """Train, print a line per epoch, write and return the result.

    Raises:
        ValueError: an unknown policy, or data that are missing or something else.
    """
    result = run(recipe_of(experiment), experiment.policy, seed=experiment.seed, report=print)
    for part in ("validation", "test"):
        figures = "  ".join(f"{name} {value:.4g}" for name, value in result[part].items())
        print(f"{part} (epoch {result['epoch']}): {figures}")
    experiment.out.mkdir(parents=True, exist_ok=True)
    path = experiment.out / f"{experiment.name}-{experiment.policy}-{experiment.seed}.json"
    path.write_text(json.dumps(result | {"seed": experiment.seed}, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {path}")
    return result
