"""`cggm experiment`: one of the papers' experiments from the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cggm.experiments.training.methods import choose_methods

from . import brats, cremad, food101, iemocap, mosi
from .recipe import Recipe, run

NAMES = ("food101", "mosi", "iemocap", "brats", "cremad")


@dataclass(frozen=True, kw_only=True)
class PaperExperiment:
    """What `cggm experiment` is told; see there for what each field means.

    Raises:
        ValueError: an unknown experiment, fewer than one epoch or sample.

    >>> PaperExperiment(name="mosi", data=Path("mosi.pkl")).policy
    'cggm'
    """

    name: str
    data: Path
    policy: str = "cggm"
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    fold: int = 1
    models: tuple[str, str] = ("google/vit-base-patch16-224-in21k", "bert-base-uncased")
    out: Path = Path()

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"name must be one of {list(NAMES)}, got {self.name!r}")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def recipe_of(experiment: PaperExperiment) -> Recipe:
    """The recipe, its data read and its model made from the seed.

    Raises:
        ValueError: the data are missing or are something else; an unknown policy.
    """
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
