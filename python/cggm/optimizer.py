"""The optimizer wrapper: orchestration only. Scores -> policy -> coefficients -> step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .arguments import check_flag
from .deprecated import former_arguments
from .distributed.context import DistributedContext
from .model.checks import check_model, check_optimizer
from .model.encoder import read_encoders
from .model.gradient_buffers import GradientBuffers
from .model.multimodal import MultimodalModel
from .model.scoring import score_modalities
from .optim.balanced import BalancedOptimizer
from .optim.fused import capturing
from .optim.modulation import modulate_step
from .optim.notices import Notices
from .optim.objective import check_loss, total_loss
from .optim.statistics import Statistics
from .optim.step import Fused, StepExecutor
from .optim.step_state import BalancedLoss, StepState
from .policies import Policy, Role, default_policy
from .policies.plan import check_distribution, check_updated, make_plan
from .policies.scores import Scores, find_scores
from .tasks import ModelTask, Task, find_task
from .tasks.calls import TaskCalls
from .torch_private import disable_dynamo


class CGGMOptimizerWrapper(BalancedOptimizer):
    """Makes any optimizer balance the modalities of a multimodal model.

    Two lines in the training loop beside this constructor: `loss = optimizer.balance(loss, target)` between forward and
    backward, and the `optimizer.step()` that is there anyway. Whatever takes an optimizer takes the wrapper.

    Args:
        optimizer: any `torch.optim.Optimizer` over the model's parameters; gets a group of the classifiers', too.
        model: the model, behind `torch.compile` or `DistributedDataParallel` or not.
        encoders: at least two; modality name -> encoder, by dotted submodule name, by module, or as an `Encoder` that
            also says where its features are and which unimodal classifier it has.
        head: the fusion's output layer, by name or module. The default classifiers are made like it, an `nn.Linear` or
            a convolution. None, as for late fusion or several heads, needs a classifier for each encoder,
            `Encoder(..., classifier=module)`, and a policy that uses no head: not `CGGM(lam > 0)`,
            `OGMGE(split_head=True)`, `AGM()` or `TCMax()`.
        policy: the balancing method, by default `default_policy()`: `NormEqualization(bounded=True) +
            ModalityDropout(0.2, fill=1e-6)`. Where no sample can lose a modality, as samples share features, pass
            `NormEqualization(bounded=True)`; where there are no classifiers, a policy of coefficients, as `CGGM()`.
        task: `"classification"`, `"regression"`, `"segmentation"`, `"multi-label"`, or a `Task`; with masked scores a
            function of the model's output and the target, too, that returns a loss. None for classification; with
            masked scores, for the model's own loss where it has one.
        apply: what the coefficients scale. `"feature"`: the gradient entering the encoder, whatever its size.
            `"gradient"`: the parameters' gradients. `"update"`: what the optimizer does to the parameters, which
            survives the normalization of Adam. `"auto"`: what the policy prefers with this optimizer.
        fused: `"auto"` steps through this library's kernels where a coefficient or a norm can be folded in, and else
            through the wrapped optimizer's own `step()`; True always, False never.
        scores: where the modalities' scores come from. `"classifiers"`, or `ClassifierScores(lr=...)`: unimodal
            classifiers. `"masked"`, or `MaskedScores(every=...)`: the model itself with the other modalities masked.
            `"retrieval"`, or `RetrievalScores(temperature=...)`: retrieval within a batch, for contrastive training.
            Without classifiers `head` may be left out.

    A copy (`copy.deepcopy((model, optimizer))`, `pickle`) stands between two steps: torch copies no gradients, so what
    was pending is dropped. In a copy of the model alone, hooks and classifiers do nothing. A running average of the
    weights (`AveragedModel`) is made after this wrapper, and after the first `balance()` or with all widths given, as
    `Encoder(..., classifier=width)`: the first batch corrects the widths of default classifiers.

    Raises:
        TypeError, ValueError: an argument that cannot work; the message says what is wrong and how to fix it.

    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.audio, self.image, self.head = nn.Linear(8, 4), nn.Linear(6, 4), nn.Linear(8, 3)
    ...     def forward(self, audio, image):
    ...         return self.head(torch.cat([self.audio(audio), self.image(image)], 1).relu())
    >>> model = Model()
    >>> optimizer = CGGMOptimizerWrapper(torch.optim.SGD(model.parameters(), lr=0.1), model,
    ...                                  encoders={"audio": "audio", "image": "image"}, head="head")
    >>> target = torch.randint(3, (16,))
    >>> loss = nn.functional.cross_entropy(model(torch.randn(16, 8), torch.randn(16, 6)), target)
    >>> optimizer.balance(loss, target).backward()
    >>> optimizer.step()
    >>> optimizer.statistics["coefficients"]
    tensor([1., 1.])
    """

    @former_arguments
    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        encoders: Mapping[str, Any],
        head: str | nn.Module | None = None,
        policy: Policy | Role | None = None,
        task: str | Task | Callable[[Any, Any], Tensor] | None = None,
        apply: Literal["auto", "feature", "gradient", "update"] = "auto",
        fused: Fused = "auto",
        scores: str | Scores = "classifiers",
    ) -> None:
        super().__init__(optimizer)
        check_optimizer(optimizer, check_model(model))
        scores = find_scores(scores)
        self.task = (
            find_task("classification" if task is None else task) if scores.classifiers else ModelTask(task)
        )
        self._plan = make_plan(default_policy() if policy is None else policy, apply, optimizer, scores)
        context = DistributedContext(model)
        check_distribution(self._plan, context)
        self._model = MultimodalModel(model, read_encoders(encoders), head, self._plan, context)
        check_updated(self._plan, self._model.encoders.encoder_parameters(), self.modalities, optimizer)
        self._executor = StepExecutor(self, self._model, fused)
        self._model.attach(optimizer, scores.lr if scores.classifiers else None)
        self._disown_at_end()
        self._calls = TaskCalls(self.task, self.modalities)

        self._state = StepState(self._plan, self._tell_junctions)
        self._buffers: GradientBuffers | None = None
        self._diagnostics: Mapping[str, Tensor] = {}
        self._fresh = True  # no classifier has learnt anything: a guessed width may still be corrected
        self._notices = Notices(self._model)
        self.statistics = Statistics({})

    @disable_dynamo  # as torch's own optimizers do it: no part of the graph of a compiled training step
    def balance(
        self, loss: Tensor, target: Any = None, *, present: Mapping[str, Tensor | bool] | None = None
    ) -> Tensor:
        """The loss to go backward from: the multimodal loss, the classifiers' losses and the direction term.

        Runs the classifiers on the features of the forward pass just made, and makes the coefficients from their
        scores. Call it once per forward pass; with gradient accumulation on the undivided loss.

        Args:
            loss: the multimodal loss, 0-dimensional, with its graph.
            target: the batch's target, in a form that the task knows: a tensor for the tasks of the library, any
                structure for one of your own; None where nothing is compared with it.
            present: modality -> bool `[B]`, True for the samples that have it, or one bool for all samples. Modalities
                that are left out are complete. Unimodal losses and scores are means over the samples that have the
                modality; without any, its coefficients keep their state. An encoder need not run at all if no sample
                has its modality. The model itself must not use absent features; modality dropout draws before this call
                and does not know about them, so a sample may lose its only modality.

        Raises:
            RuntimeError: no forward pass since the last call, gradients disabled, after `detach()`.
            TypeError: a task of your own that has no argument `present`, where `present` is passed.
            ValueError: a loss that is not 0-dimensional, a target that does not fit the task, or such a `present`.
        """
        self._check_attached("balance()")
        check_loss(loss)
        if self.active:
            self._notices.at_balance(self._plan.scores.classifiers)
        state, model = self._state, self._model
        if self._fresh and not capturing():
            self._calls.check_values(target)
        fit = self._fresh and model.context.start()
        scores = score_modalities(
            model, state.plan, self._calls, loss, target, fit=fit, measure=state.measures, present=present
        )
        self._fresh = False
        if (state.backward_ran or state.unrepeatable) and model.gradients_were_cleared():
            state.clear()  # by model.zero_grad(), after a step that was skipped
        balanced = state.add(scores.scores, scores.samples)
        self._diagnostics = {"loss": loss.detach(), **scores.diagnostics}
        total = total_loss(model, state, loss, scores, target)
        started = weakref.WeakMethod(self._backward_started)  # a loss that is kept must not keep this object
        total.register_hook(partial(_run_if_alive, started, balanced, scores.bad))
        model.forget()
        return total

    def _backward_started(self, balanced: BalancedLoss, bad: Tensor | None) -> None:
        self._state.mark_backward(balanced)
        self.statistics.close()
        if bad is not None:
            self._model.guard.start(bad)
        self._model.context.backward_started()
        if self._buffers is not None:
            self._buffers.backward_started()

    @disable_dynamo
    def modulate(self) -> None:
        """Apply the coefficients to the gradients now, and measure them; `step()` does it where nobody has.

        For whoever clips or inspects gradients: unscale, modulate, clip, step. Called again it does nothing.

        Raises:
            RuntimeError: `balance()` was called, but its loss has not gone backward; an earlier call has failed.
        """
        self._modulate(wait=False)

    @torch.no_grad()
    def _modulate(self, *, wait: bool) -> None:
        """`modulate()`; with `wait` the coefficients are left to a fused step where there can be one."""
        state = self._state
        state.check_whole()
        if state.update is None or (state.modulated and (wait or not state.left_to_step)):
            return
        self._model.encoders.check_outputs()
        parameters = self._model.encoders.with_gradients(state.backward_ran, self.base)
        state.drop_waiting()
        wait = wait and state.plan.scale_at == "gradient" and self._executor.can_fuse(True)
        with state.irrevocable("modulate()"):
            self._model.context.average_gradients_()
            if self._buffers is not None:
                self._buffers.gather()
            self.statistics = modulate_step(self._model, state, parameters, wait, self._diagnostics)

    @disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Modulate if that is still to be done, step the wrapped optimizer, and commit the policy's state.

        Without a balanced loss since the last step, this is the wrapped optimizer's own step. An error or Ctrl-C before
        the parameters change leaves the step to be called again; one that comes later, from a hook for example, is
        raised when the step is complete.

        Args:
            closure: re-evaluates the model, calling `balance()` and `backward()`, and returns the loss.

        Raises:
            RuntimeError: as `modulate()`; a step that failed half-way; `fused=True` where the kernels cannot step.
        """
        if closure is not None and not callable(closure):
            raise TypeError(f"closure must be a function or None, got {type(closure).__name__}")
        if closure is None and self.active:
            self._notices.at_step(self._state.update is not None)
        result = self._executor.step(self._state, closure, self._modulate)
        self._model.forget()  # forward passes that were not balanced
        self._state.unrepeatable = None
        return result

    @disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and forget the scores of a step that was skipped."""
        check_flag("set_to_none", set_to_none)
        self.statistics.close()
        self.base.zero_grad(set_to_none=set_to_none)
        self._state.drop_done()
        self._model.encoders.unbalanced = 0


def _run_if_alive(method: weakref.WeakMethod, number: int, bad: Tensor | None, _gradient: Tensor) -> None:
    started = method()
    if started is not None:
        started(number, bad)
