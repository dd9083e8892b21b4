"""Trains copies of a model jointly and each encoder alone, and times a balanced step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..model.relearning import run_model
from ..optimizer import CGGMOptimizerWrapper
from ..policies import DGL
from ..policies.default import default_policy
from ..policies.roles import Combiner
from ..recorder import Recorder
from ..tasks import Task
from ..tasks.structures import map_tensors

_WARM_UP, _TIMED = 3, 20  # steps

Loss = Callable[[Any, Tensor], Tensor]


class _JointTraining(Combiner):
    """Encoders learn from the multimodal loss alone, and yet the junctions see the unimodal gradient."""

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """The multimodal gradient."""
        return multimodal


class Setting:
    """The user's model, encoders, head, task, loss and optimizer, of which every run gets copies.

    Args:
        parts: model, encoders and head, as `CGGMOptimizerWrapper` takes them.
        task: trains and scores the unimodal classifiers.
        loss: of the model's output and the target.
        make_optimizer: parameters -> optimizer.
    """

    def __init__(
        self,
        parts: tuple[nn.Module, Mapping[str, Any], Any],
        task: Task,
        loss: Loss,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    ) -> None:
        self.parts, self.task, self.loss, self.make_optimizer = parts, task, loss, make_optimizer
        first = next(parts[0].parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device

    def batches(self, loader: Iterable[tuple[Any, Tensor]]) -> Iterable[tuple[Any, Tensor]]:
        """The loader's batches on the model's device."""
        for inputs, target in loader:
            yield map_tensors(lambda x: x.to(self.device), inputs), target.to(self.device)


class Run:
    """One copy of the model in training.

    Args:
        setting: what to copy.
        policy: None for a plain optimizer without a wrapper.
    """

    def __init__(self, setting: Setting, policy: Any) -> None:
        self.setting = setting
        self.model, encoders, head = copy.deepcopy(setting.parts)
        self.model.train()
        self.optimizer: Any = setting.make_optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.recorder: Recorder | None = None
        if policy is not None:
            self.optimizer = CGGMOptimizerWrapper(
                self.optimizer, self.model, encoders=encoders, head=head, policy=policy, task=setting.task
            )
            self.recorder = Recorder(self.optimizer)

    def step(self, inputs: Any, target: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        loss = self.setting.loss(run_model(self.model, inputs), target)
        if self.recorder is not None:
            loss = self.optimizer.balance(loss, target)
        loss.backward()
        self.optimizer.step()


def train(setting: Setting, loader: Iterable[tuple[Any, Tensor]], epochs: int) -> tuple[Run, Run]:
    """Train jointly, and with every encoder on its own unimodal loss, on the same batches from the same weights.

    Encoders alone are `DGL()`: the gradient that reaches one is that of its own classifier. The fusion learns on top
    of them, so that this run also says what separately trained encoders are worth together.
    """
    joint, alone = Run(setting, _JointTraining()), Run(setting, DGL())
    joint.optimizer.record = True
    for _ in range(epochs):
        for inputs, target in setting.batches(loader):
            for run in (joint, alone):
                run.step(inputs, target)
                run.recorder.record()
    if not len(joint.recorder):
        raise ValueError("train_loader holds no batch")
    return joint, alone


def price(setting: Setting, loader: Iterable[tuple[Any, Tensor]]) -> float:
    """Time of a step with the default policy, in joint steps: of the fastest of steps that take turns."""
    runs = Run(setting, None), Run(setting, default_policy())
    seconds: list[list[float]] = []  # [steps][2]
    while len(seconds) < _WARM_UP + _TIMED:
        for inputs, target in setting.batches(loader):
            seconds.append([_seconds(run, inputs, target) for run in runs])
            if len(seconds) == _WARM_UP + _TIMED:
                break
    plain, balanced = (min(column) for column in zip(*seconds[_WARM_UP:], strict=True))
    return balanced / plain


def _seconds(run: Run, inputs: Any, target: Tensor) -> float:
    start = time.perf_counter()
    run.step(inputs, target)
    if run.setting.device.type == "cuda":
        torch.cuda.synchronize(run.setting.device)
    return time.perf_counter() - start
