"""Train all methods of one seed side by side, and measure them."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, Encoder
from cggm.recorder import Recorder

from ..datasets.experiment import Experiment, Splits
from .measuring import accuracy, peak_bytes, probe
from .methods import METHODS, Method
from .results import Alone, History, Job, Outcome, Run

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
}


class Training:
    """One model on its way: its optimizer, its random numbers and its step times.

    Args:
        model: trained in place.
        method: what balances it.
        make_optimizer: parameters or parameter groups -> optimizer.
        wrapping: the wrapper's arguments beside optimizer, model, policy and apply; unused without a policy.
        learning_rate: of everything that the method gives no rate of its own.
        seed: of the random numbers that this training alone draws from, whatever else runs beside it.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        wrapping: Mapping[str, Any],
        *,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.clip = method.clip
        self.own_parameters = list(model.parameters())  # before the wrapper adds the classifiers'
        encoders = [model.get_submodule(e.module) for e in wrapping["encoders"].values()] if wrapping else []
        groups = _parameter_groups(model, encoders, method.encoder_rates, learning_rate)
        self.optimizer = make_optimizer(groups, lr=learning_rate)
        self.recorder: Recorder | None = None
        if method.policy is not None:
            self.optimizer = CGGMOptimizerWrapper(
                self.optimizer,
                model,
                policy=method.policy,
                apply=method.apply,
                classifier_lr=learning_rate,
                **wrapping,
            )
            self.recorder = Recorder(self.optimizer)
        self.seconds: list[float] = []
        self.accuracies: list[float] = []
        self._random = torch.random.manual_seed(seed).get_state()

    def step(self, inputs: Sequence[Tensor], target: Tensor) -> None:
        """One training step on a batch, timed."""
        torch.set_rng_state(self._random)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(*inputs), target)
        if self.recorder is not None:
            loss = self.optimizer.balance(loss, target)
        loss.backward()
        if self.clip is not None:
            if self.recorder is not None:
                self.optimizer.modulate()
            nn.utils.clip_grad_norm_(self.own_parameters, self.clip)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self._random = torch.get_rng_state()

    def seconds_per_step(self) -> float:
        """The median over the steps, the first tenth left out."""
        return statistics.median(self.seconds[len(self.seconds) // 10 :])


def _parameter_groups(
    model: nn.Module, encoders: Sequence[nn.Module], rates: Sequence[float], learning_rate: float
) -> Iterable[Any]:
    """The model's parameters, or groups of them where encoders have learning rates of their own."""
    if not rates:
        return list(model.parameters())
    if len(rates) != len(encoders):
        raise ValueError(f"encoder_rates must be {len(encoders)} numbers, one per encoder, got {list(rates)}")
    groups = [
        {"params": list(encoder.parameters()), "lr": rate * learning_rate}
        for encoder, rate in zip(encoders, rates, strict=True)
    ]
    taken = {parameter for group in groups for parameter in group["params"]}
    return [{"params": [p for p in model.parameters() if p not in taken]}, *groups]


def run_job(job: Job, advance: Callable[[], None] = lambda: None) -> Outcome:
    """Train every method of the job on the same batches from the same weights, step by step in turn.

    Taking turns within one process makes the step times comparable: whatever slows the machine down slows all.

    Args:
        job: what to do.
        advance: called after every epoch; an exception from it ends the job.

    >>> from cggm.experiments.datasets import avdigits
    >>> from cggm.experiments.training.methods import choose_methods
    >>> methods = choose_methods(["joint", "cggm"])
    >>> job = Job(build=avdigits.build, optimizer="sgd", methods=methods, seed=0, epochs=1)
    >>> [run.method for run in run_job(job).runs]
    ['joint', 'cggm']
    """
    experiment = job.build()
    data = experiment.load(job.seed)
    torch.manual_seed(job.seed)
    model = experiment.model()
    classifiers = {modality: experiment.classifier() for modality in experiment.encoders}
    trainings, alone = _prepare(job, experiment, model, classifiers)
    everyone = [*trainings.values(), *alone]
    batches = torch.Generator().manual_seed(job.seed)
    step = 0
    for _ in range(job.epochs):
        rows_of_epoch = torch.randperm(len(data.train.target), generator=batches).split(experiment.batch_size)
        for rows in rows_of_epoch:
            inputs, target = [values[rows] for values in data.train.inputs], data.train.target[rows]
            first = step % len(everyone)  # take turns in being first, too
            for training in everyone[first:] + everyone[:first]:
                training.step(inputs, target)
            step += 1
            for training in trainings.values():
                if job.history and training.recorder is not None:
                    training.recorder.record()
        if job.history:
            for training in trainings.values():
                training.accuracies.append(accuracy(training.model, data.test))
        advance()
    return _measure(job, experiment, data, trainings, alone)


class _OneModality(nn.Module):
    """An encoder with a classifier of its own, called like the whole model."""

    def __init__(self, index: int, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.index, self.encoder, self.classifier = index, encoder, classifier

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.classifier(self.encoder(inputs[self.index]))


def _prepare(
    job: Job, experiment: Experiment, model: nn.Module, classifiers: dict[str, nn.Module]
) -> tuple[dict[str, Training], list[Training]]:
    """A training per method and one per modality alone, all from the same initial weights."""
    own = experiment.learning_rates[job.optimizer]

    def start(model: nn.Module, method: Method, rate: float, wrapping: dict[str, Any]) -> Training:
        make = OPTIMIZERS[job.optimizer]
        return Training(model, method, make, wrapping, learning_rate=rate, seed=job.seed)

    trainings = {}
    for name, method in job.methods.items():
        wrapping = {
            "encoders": {
                modality: Encoder(path, classifier=copy.deepcopy(classifiers[modality]))
                for modality, path in experiment.encoders.items()
            },
            "head": experiment.head,
        }
        trainings[name] = start(copy.deepcopy(model), method, job.learning_rates.get(name, own), wrapping)
    if job.only_accuracy:
        return trainings, []
    apart = [
        _OneModality(i, *copy.deepcopy((model.get_submodule(path), classifiers[name])))
        for i, (name, path) in enumerate(experiment.encoders.items())
    ]
    # Alone, an encoder learns as in joint training, at the rate that joint training was given.
    rate = job.learning_rates.get("joint", own)
    return trainings, [start(model, METHODS["joint"], rate, {}) for model in apart]


def _measure(
    job: Job, experiment: Experiment, data: Splits, trainings: dict[str, Training], alone: list[Training]
) -> Outcome:
    common = {"optimizer": job.optimizer, "seed": job.seed}
    runs, histories = [], []
    rows = slice(0, experiment.batch_size)
    batch = [values[rows] for values in data.train.inputs], data.train.target[rows]
    for name, training in trainings.items():
        if job.history:
            histories.append(_history(training, experiment, data, method=name, **common))
        encoders = [(m, training.model.get_submodule(path)) for m, path in experiment.encoders.items()]
        measured = {
            "accuracy": accuracy(training.model, data.test),
            "validation": accuracy(training.model, data.validation),
            "probe": {}
            if job.only_accuracy
            else {m: probe(encoder, data, i) for i, (m, encoder) in enumerate(encoders)},
            "seconds_per_step": training.seconds_per_step(),
        }
        training.model.train()
        memory = (  # last: it takes one more step
            None
            if job.only_accuracy
            else peak_bytes(training.model, training.optimizer, lambda t=training: t.step(*batch))
        )
        rate = training.learning_rate
        runs.append(
            Run(
                **common,
                **measured,
                dataset=experiment.name,
                method=name,
                learning_rate=rate,
                peak_bytes=memory,
            )
        )
    if not alone:
        return Outcome(job=job, runs=runs, histories=histories)
    probes = {
        modality: probe(training.model.encoder, data, i)
        for i, (modality, training) in enumerate(zip(experiment.encoders, alone, strict=True))
    }
    apart = Alone(**common, dataset=experiment.name, probe=probes)
    return Outcome(job=job, runs=runs, alone=apart, histories=histories)


def _history(training: Training, experiment: Experiment, data: Splits, **names: Any) -> History:
    recorded = training.recorder.history() if training.recorder is not None else {}
    return History(
        **names,
        modalities=tuple(experiment.encoders),
        steps_per_epoch=-(-len(data.train.target) // experiment.batch_size),
        accuracy=np.array(training.accuracies),
        statistics={key: values.numpy() for key, values in recorded.items()},
    )
