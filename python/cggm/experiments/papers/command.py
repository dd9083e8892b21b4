"""`cggm experiment`: one of the papers' experiments from the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from cggm.experiments.output import check_folder, replacing
from cggm.experiments.seeds import check_seed

from . import brats, cremad, food101, iemocap, mosi
from .recipe import Recipe, check_policy, run


@dataclass(frozen=True, kw_only=True)
class PaperExperiment:
    """Train one of the papers' experiments on your copy of the data, with the papers' hyper-parameters.

    Tests the epoch that does best on the validation part. Writes the result to <name>-<policy>-<seed>.json.
    Needs the extra cggm[papers].

    Args:
        name: Which experiment.
        data: Where the data are; the experiment's module describes the format.
        policy: The name of a method, as in cggm compare; cggm-paper and cggm-released take the paper's rho and lambda.
        seed: Seed of weights and batches.
        epochs: Number of epochs; by default the paper's.
        batch_size: Samples per batch; by default the paper's.
        fold: Fold of IEMOCAP's cross-validation.
        models: Food 101's frozen models, folders or names: ViT, then BERT.
        out: The folder for the result.

    >>> PaperExperiment(name="mosi", data=Path("mosi.pkl")).policy
    'cggm'
    """

    name: Positional[Literal["food101", "mosi", "iemocap", "brats", "cremad"]]
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
        ValueError: an unknown policy, an epoch count or batch size below 1, or data that are missing or
            hold something else.
    """
    changes = {"epochs": experiment.epochs, "batch_size": experiment.batch_size}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, value in changes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_seed("seed", experiment.seed)
    check_policy(experiment.policy)
    torch.manual_seed(experiment.seed)
    path = experiment.data
    if experiment.name == "food101":
        recipe = food101.build(path, vit=experiment.models[0], bert=experiment.models[1])
    elif experiment.name == "iemocap":
        recipe = iemocap.build(path, fold=experiment.fold)
    else:
        recipe = {"mosi": mosi, "brats": brats, "cremad": cremad}[experiment.name].build(path)
    return dataclasses.replace(recipe, **changes)


def run_experiment(experiment: PaperExperiment) -> dict[str, Any]:
    """Train, print a line per epoch, write and return the result.

    Raises:
        ValueError: as from `recipe_of`, or a file cannot be written.
    """
    recipe = recipe_of(experiment)
    check_folder(experiment.out)
    result = run(recipe, experiment.policy, seed=experiment.seed, report=print)
    for part in ("validation", "test"):
        figures = "  ".join(f"{name} {value:.4g}" for name, value in result[part].items())
        print(f"{part} (epoch {result['epoch']}): {figures}")
    path = experiment.out / f"{experiment.name}-{experiment.policy}-{experiment.seed}.json"
    with replacing(path) as unfinished:
        unfinished.write_text(
            json.dumps(result | {"seed": experiment.seed}, indent=2) + "\n", encoding="utf-8"
        )
    print(f"Written: {path}")
    return result
