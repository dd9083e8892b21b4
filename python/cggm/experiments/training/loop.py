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

from cggm import CGGMOptimizerWrapper, ClassifierScores, Encoder
from cggm.recorder import Recorder

from ..datasets.experiment import Experiment, Splits
from ..datasets.splitting import split_batches
from .baselines import Ensemble, LateFusion
from .measuring import accuracy, evaluate, peak_bytes, probe
from .methods import METHODS, Method
from .results import Alone, History, Job, Outcome, Run

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
}
BASELINES = {"ensemble": Ensemble, "late": LateFusion}
BLOCK = 10  # steps whose times are averaged before the median is taken


class Training:
    """One model in training: its optimizer, its random numbers and its step times.

    Args:
        model: trained in place.
        method: how to train it.
        make_optimizer: parameters or parameter groups -> optimizer.
        wrapping: the wrapper's arguments beside optimizer, model, policy and apply; empty for a model of `baselines`.
        learning_rate: rate of everything to which the method gives no factor.
        seed: seed of the random numbers that this training alone draws from.
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
        self.encoders = (
            [model.get_submodule(encoder.module) for encoder in wrapping["encoders"].values()]
            if wrapping
            else list(model.encoders)
        )
        groups = _parameter_groups(model, self.encoders, method.encoder_rates, learning_rate)
        self.optimizer = make_optimizer(groups, lr=learning_rate)
        self.recorder: Recorder | None = None
        if method.policy is not None:
            self.optimizer = CGGMOptimizerWrapper(
                self.optimizer,
                model,
                policy=method.policy,
                apply=method.apply,
                scores=ClassifierScores(lr=learning_rate),
                **wrapping,
            )
            self.recorder = Recorder(self.optimizer)
        self.seconds: list[float] = []
        self.accuracies: list[float] = []
        self._random = torch.random.manual_seed(seed).get_state()

    def step(self, inputs: Sequence[Tensor], target: Tensor) -> None:
        """One training step on a batch; records the CPU time of this thread."""
        torch.set_rng_state(self._random)
        start = time.thread_time()
        self.optimizer.zero_grad()
        loss = self._loss(inputs, target)
        if self.recorder is not None:
            loss = self.optimizer.balance(loss, target)
        loss.backward()
        if self.clip is not None:
            if self.recorder is not None:
                self.optimizer.modulate()
            nn.utils.clip_grad_norm_(self.own_parameters, self.clip)
        self.optimizer.step()
        self.seconds.append(time.thread_time() - start)
        self._random = torch.get_rng_state()

    def _loss(self, inputs: Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(self.model, LateFusion):
            return self.model.loss(inputs, target)
        return F.cross_entropy(self.model(*inputs), target)

    def seconds_per_step(self) -> float:
        """The median over blocks of steps, without the first tenth of the steps."""
        kept = self.seconds[len(self.seconds) // 10 :]
        blocks = [kept[i : i + BLOCK] for i in range(0, len(kept), BLOCK)]
        return statistics.median(statistics.fmean(block) for block in blocks)


def _parameter_groups(
    model: nn.Module, encoders: Sequence[nn.Module], rates: Sequence[float] | float, learning_rate: float
) -> Iterable[Any]:
    """The model's parameters, or groups of them where encoders have learning rates of their own."""
    if rates == ():
        return list(model.parameters())
    rates = (rates,) * len(encoders) if isinstance(rates, float) else rates
    if len(rates) != len(encoders):
        raise ValueError(f"encoder_rates must be {len(encoders)} numbers, one per encoder, got {list(rates)}")
    groups = [
        {"params": list(encoder.parameters()), "lr": rate * learning_rate}
        for encoder, rate in zip(encoders, rates, strict=True)
    ]
    taken = {parameter for group in groups for parameter in group["params"]}
    return [{"params": [p for p in model.parameters() if p not in taken]}, *groups]


def run_job(
    job: Job,
    advance: Callable[[], None] = lambda: None,
    stepped: Callable[[Mapping[str, Training]], None] = lambda _: None,
) -> Outcome:
    """Train every method of the job on the same batches from the same weights, taking turns step by step.

    Args:
        job: what to run.
        advance: called after every epoch; an exception from it ends the job.
        stepped: called with the trainings after every step.

    >>> from cggm.experiments.datasets import avdigits
    >>> from cggm.experiments.training.methods import choose_methods
    >>> methods = choose_methods(["joint", "cggm"])
    >>> job = Job(build=avdigits.build, optimizer="sgd", methods=methods, seed=0, epochs=1)
    >>> [run.method for run in run_job(job).runs]
    ['joint', 'cggm']
    """
    experiment = job.build()
    data = experiment.load(job.seed)
    trainings, alone = _prepare(job, experiment)
    everyone = list(trainings.values())
    everyone += [alone] if alone is not None and alone not in everyone else []
    batches = torch.Generator().manual_seed(job.seed)
    step = 0
    for _ in range(job.epochs):
        order = torch.randperm(len(data.train.target), generator=batches)
        for rows in split_batches(order, experiment.batch_size):
            inputs, target = [values[rows] for values in data.train.inputs], data.train.target[rows]
            first = step % len(everyone)  # take turns in being first, too
            for training in everyone[first:] + everyone[:first]:
                training.step(inputs, target)
            step += 1
            for training in trainings.values():
                if job.history and training.recorder is not None:
                    training.recorder.record()
            stepped(trainings)
        if job.history:
            for training in trainings.values():
                training.accuracies.append(accuracy(training.model, data.test))
        advance()
    return _measure(job, experiment, data, trainings, alone)


def _prepare(job: Job, experiment: Experiment) -> tuple[dict[str, Training], Training | None]:
    """A training per method and the encoders alone, which are the ensemble's; all start with the same weights."""
    torch.manual_seed(job.seed)
    model = experiment.model()
    classifiers = {modality: experiment.classifier() for modality in experiment.encoders}
    own = experiment.learning_rates[job.optimizer]

    def start(method: Method, rate: float) -> Training:
        copied, heads = copy.deepcopy((model, classifiers))
        wrapping: dict[str, Any] = {}
        if method.fusion == "model":
            encoders = {m: Encoder(path, classifier=heads[m]) for m, path in experiment.encoders.items()}
            wrapping = {"encoders": encoders, "head": experiment.head}
        else:
            encoders = [copied.get_submodule(path) for path in experiment.encoders.values()]
            copied = BASELINES[method.fusion](encoders, heads.values())
        make = OPTIMIZERS[job.optimizer]
        return Training(copied, method, make, wrapping, learning_rate=rate, seed=job.seed)

    trainings = {
        name: start(method, job.learning_rates.get(name, own)) for name, method in job.methods.items()
    }
    if job.only_accuracy:
        return trainings, None
    rate = job.learning_rates.get("joint", own)
    return trainings, trainings.get("ensemble") or start(METHODS["ensemble"], rate)


def _measure(
    job: Job, experiment: Experiment, data: Splits, trainings: dict[str, Training], alone: Training | None
) -> Outcome:
    common = {"optimizer": job.optimizer, "seed": job.seed}
    runs, histories = [], []
    rows = slice(0, experiment.batch_size)
    batch = [values[rows] for values in data.train.inputs], data.train.target[rows]

    def probes(training: Training) -> dict[str, float]:
        modalities = enumerate(zip(experiment.encoders, training.encoders, strict=True))
        return {modality: probe(encoder, data, i) for i, (modality, encoder) in modalities}

    # Before the memory is measured, which takes one more step: the encoders alone may be a method's.
    apart = None if alone is None else Alone(**common, dataset=experiment.name, probe=probes(alone))
    for name, training in trainings.items():
        if job.history:
            histories.append(_history(training, experiment, data, method=name, **common))
        test, validation = evaluate(training.model, data.test), evaluate(training.model, data.validation)
        measured = {
            "accuracy": test.accuracy,
            "f1": test.f1,
            "auc": test.auc,
            "ece": test.ece,
            "correct": test.correct if experiment.fixed_test else "",
            "validation": validation.accuracy,
            "validation_loss": validation.loss,
            "validation_rows": len(data.validation.target),
            "probe": {} if job.only_accuracy else probes(training),
            "seconds_per_step": training.seconds_per_step(),
            "learning_rate": training.learning_rate,
        }
        training.model.train()
        memory = (  # last: it takes one more step
            None
            if job.only_accuracy
            else peak_bytes(training.model, training.optimizer, lambda t=training: t.step(*batch))
        )
        runs.append(Run(**common, **measured, dataset=experiment.name, method=name, peak_bytes=memory))
    return Outcome(job=job, runs=runs, alone=apart, histories=histories)


def _history(training: Training, experiment: Experiment, data: Splits, **names: Any) -> History:
    recorded = training.recorder.history() if training.recorder is not None else {}
    return History(
        **names,
        modalities=tuple(experiment.encoders),
        steps_per_epoch=len(split_batches(data.train.target, experiment.batch_size)),
        accuracy=np.array(training.accuracies),
        statistics={key: values.numpy() for key, values in recorded.items()},
    )
