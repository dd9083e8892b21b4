"""`cggm diagnose`: does a data set's model starve a modality, and is balancing worth its price?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from cggm import Encoder
from cggm.diagnosis import Report, diagnose

from .datasets.checks import check_experiment
from .datasets.experiment import Experiment, Split
from .datasets.registry import find_experiment
from .datasets.splitting import split_batches
from .options import DiagnosedDataset, OneOptimizer
from .output import check_folder, wide_console
from .seeds import check_seed
from .training.loop import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Measure the imbalance between the modalities of a model, and say whether balancing is worth trying.

    Prints a table and a verdict, and writes diagnosis.json, diagnosis.png and diagnosis.html.

    Args:
        dataset: A name in `DATASETS` or `FROM_FILES`; by default avdigits, where no experiment is given.
        data: The folder with the files of a data set that does not come with the library.
        experiment: Your own experiment, module:object or path/file.py:object.
        optimizer: A name in `OPTIMIZERS`.
        seed: Chooses the data's parts, the first weights and the batches.
        epochs: Epochs of training; by default the experiment's own number.
        out: The folder for the files.
    """

    dataset: DiagnosedDataset = None
    data: Path | None = None
    experiment: str | None = None
    optimizer: OneOptimizer = "sgd"
    seed: int = 0
    epochs: int | None = None
    out: Path = Path("diagnosis")


class Batches:
    """Batches of one part of the data as `cggm compare` makes them, shuffled in every epoch or in the data's own order.

    Args:
        split: the data.
        size: samples per batch.
        seed: of the order; None leaves it.
    """

    def __init__(self, split: Split, size: int, seed: int | None = None) -> None:
        self._split, self._size = split, size
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        count = len(self._split.target)
        rows = torch.arange(count)
        if self._generator is not None:
            rows = torch.randperm(count, generator=self._generator)
        for chosen in split_batches(rows, self._size):
            yield [values[chosen] for values in self._split.inputs], self._split.target[chosen]


def diagnose_experiment(
    experiment: Experiment, *, optimizer: str = "sgd", seed: int = 0, epochs: int | None = None
) -> Report:
    """The report on an experiment's model, on its training and validation part.

    Args:
        experiment: data and model.
        optimizer: a name in `OPTIMIZERS`, at the experiment's own learning rate.
        seed: of data, weights and batches.
        epochs: None for the experiment's own number.
    """
    data = experiment.load(seed)
    torch.manual_seed(seed)
    model = experiment.model()
    encoders: dict[str, Any] = {
        name: Encoder(path, classifier=experiment.classifier()) for name, path in experiment.encoders.items()
    }
    rate = experiment.learning_rates[optimizer]
    return diagnose(
        model,
        encoders,
        head=experiment.head,
        train_loader=Batches(data.train, experiment.batch_size, seed),
        validation_loader=Batches(data.validation, experiment.batch_size),
        optimizer=lambda parameters: OPTIMIZERS[optimizer](parameters, rate),
        epochs=experiment.epochs if epochs is None else epochs,
    )


def run_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Diagnose, print the report and write the files.

    Args:
        diagnosis: what to diagnose.
        console: where to print.

    Raises:
        ValueError: a data set and an experiment, an unknown name, an experiment that cannot train, no epochs, or a
            folder that cannot be written to.
    """
    console = wide_console(console)
    check_seed("seed", diagnosis.seed)
    if diagnosis.epochs is not None and diagnosis.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {diagnosis.epochs}")
    if diagnosis.dataset is not None and diagnosis.experiment is not None:
        raise ValueError("dataset and experiment: diagnose one at a time, pass --dataset or --experiment")
    if diagnosis.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {list(OPTIMIZERS)}, got {diagnosis.optimizer!r}")
    name = diagnosis.dataset if diagnosis.experiment is None else diagnosis.experiment
    experiment = find_experiment("avdigits" if name is None else name, diagnosis.data)()
    check_experiment(experiment, seed=diagnosis.seed, optimizers=[diagnosis.optimizer])
    check_folder(diagnosis.out)
    report = diagnose_experiment(
        experiment, optimizer=diagnosis.optimizer, seed=diagnosis.seed, epochs=diagnosis.epochs
    )
    console.print(report)
    written = report.save(diagnosis.out)
    console.print(f"Written: {' and '.join(map(str, written))}", highlight=False, soft_wrap=True)
