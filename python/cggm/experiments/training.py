"""Train all methods of one seed side by side, and measure them."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper
from cggm.recorder import Recorder

from .experiment import Experiment, Split, Splits
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
        make_optimizer: parameters -> optimizer.
        wrapping: the wrapper's arguments beside optimizer, model and policy; unused without a policy.
        seed: of the random numbers that this training alone draws from, whatever else runs beside it.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        wrapping: Mapping[str, object],
        *,
        seed: int,
    ) -> None:
        self.model = model
        self.clip = method.clip
        self.own_parameters = list(model.parameters())  # before the wrapper adds the classifiers'
        self.optimizer = make_optimizer(self.own_parameters)
        self.recorder: Recorder | None = None
        if method.policy is not None:
            self.optimizer = CGGMOptimizerWrapper(self.optimizer, model, policy=method.policy(), **wrapping)
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


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of samples whose largest logit is the target's; the model is left in training mode."""
    model.eval()
    correct = (model(*split.inputs).argmax(1) == split.target).double().mean().item()
    model.train()
    return correct


@torch.no_grad()
def probe(encoder: nn.Module, data: Splits, modality: int) -> float:
    """Test accuracy of a logistic regression on what a frozen encoder makes of one modality."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    encoder.eval()
    train, test = (
        # An encoder that diverged tells nothing: constant features, and the regression is left to guess.
        np.nan_to_num(encoder(split.inputs[modality]).numpy(), nan=0.0, posinf=0.0, neginf=0.0)
        for split in (data.train, data.test)
    )
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    regression.fit(train, data.train.target.numpy())
    return float(regression.score(test, data.test.target.numpy()))


def run_job(job: Job, advance: Callable[[], None] = lambda: None) -> Outcome:
    """Train every method of the job on the same batches from the same weights, step by step in turn.

    Taking turns within one process makes the step times comparable: whatever slows the machine down slows all.

    Args:
        job: what to do.
        advance: called after every epoch; an exception from it ends the job.

    >>> from cggm.experiments import avdigits
    >>> job = Job(build=avdigits.build, optimizer="sgd", methods=("joint", "cggm"), seed=0, epochs=1)
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
    learning_rate = experiment.learning_rates[job.optimizer]

    def start(model: nn.Module, method: Method) -> Training:
        wrapping = {
            "encoders": dict(experiment.encoders),
            "head": experiment.head,
            "classifiers": copy.deepcopy(classifiers),
            "classifier_lr": learning_rate,
        }
        return Training(
            model,
            method,
            lambda parameters: OPTIMIZERS[job.optimizer](parameters, lr=learning_rate),
            wrapping,
            seed=job.seed,
        )

    trainings = {name: start(copy.deepcopy(model), METHODS[name]) for name in job.methods}
    alone = [
        start(
            _OneModality(i, *copy.deepcopy((model.get_submodule(path), classifiers[name]))), METHODS["joint"]
        )
        for i, (name, path) in enumerate(experiment.encoders.items())
    ]
    return trainings, alone


def _measure(
    job: Job, experiment: Experiment, data: Splits, trainings: dict[str, Training], alone: list[Training]
) -> Outcome:
    common = {"optimizer": job.optimizer, "seed": job.seed}
    runs, histories = [], []
    for name, training in trainings.items():
        probes = {
            modality: probe(training.model.get_submodule(path), data, i)
            for i, (modality, path) in enumerate(experiment.encoders.items())
        }
        runs.append(
            Run(
                **common,
                dataset=experiment.name,
                method=name,
                accuracy=accuracy(training.model, data.test),
                probe=probes,
                seconds_per_step=training.seconds_per_step(),
            )
        )
        if job.history:
            recorded = training.recorder.history() if training.recorder is not None else {}
            histories.append(
                History(
                    **common,
                    method=name,
                    modalities=tuple(experiment.encoders),
                    steps_per_epoch=-(-len(data.train.target) // experiment.batch_size),
                    accuracy=np.array(training.accuracies),
                    statistics={key: values.numpy() for key, values in recorded.items()},
                )
            )
    probes = {
        modality: probe(training.model.encoder, data, i)
        for i, (modality, training) in enumerate(zip(experiment.encoders, alone, strict=True))
    }
    return Outcome(
        job=job,
        runs=runs,
        alone=Alone(**common, dataset=experiment.name, probe=probes),
        histories=histories,
    )
