"""The optimizer wrapper: orchestration only. Scores -> policy -> coefficients -> application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .model.multimodal import MultimodalModel
from .model.scoring import assess, check_loss
from .optim import checkpoint, direction
from .optim.base import WrappedOptimizer
from .optim.scaling import check_updated, choose_application, gradient_norms, modulate_gradients_
from .optim.statistics import Statistics
from .optim.step import Stepping
from .optim.step_state import PendingStep
from .policies import CGGM, Joint, Policy
from .tasks import Task, find_task


class CGGMOptimizerWrapper(WrappedOptimizer):
    """Makes any optimizer balance the modalities of a multimodal model.

    Two lines in the training loop beside this constructor: `loss = optimizer.balance(loss, target)` between forward and
    backward, and the `optimizer.step()` that is there anyway. Whatever takes an optimizer takes the wrapper.

    Args:
        optimizer: any `torch.optim.Optimizer` over the model's parameters; gets a group of the classifiers', too.
        model: the model, behind `torch.compile` or `DistributedDataParallel` or not.
        encoders: at least two; modality name -> encoder, by dotted submodule name or module, or a pair of that and
            the selector of the features in its output.
        head: the fusion's output layer, by name or module; it has a weight matrix `[C, H]`.
        policy: the balancing method, by default `CGGM()`.
        task: `"classification"`, `"regression"`, or a `Task`.
        classifiers: None for default unimodal classifiers, `"attention"`, or a mapping modality -> module,
            (module, name of its output layer) or width of the features.
        apply: where coefficients act. `"feature"`: on the gradient entering the encoder, whatever its size.
            `"gradient"`: on the parameters' gradients. `"update"`: on what the optimizer does to the parameters,
            which survives the normalisation of Adam and kin. `"auto"`: what the policy prefers with this optimizer.
        classifier_lr: learning rate of the unimodal classifiers, by default that of the head's group.
        flatten: True lays gradients out in `gradient_buffers`, every `.grad` a view, by the end of backward.

    Raises:
        TypeError, ValueError: an argument that cannot work; the message names it and the mend.

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

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        encoders: Mapping[str, Any],
        head: str | nn.Module,
        policy: Policy | None = None,
        task: str | Task = "classification",
        classifiers: Mapping[str, Any] | str | None = None,
        apply: Literal["auto", "feature", "gradient", "update"] = "auto",
        classifier_lr: float | None = None,
        flatten: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.policy = CGGM() if policy is None else policy
        self.task = find_task(task)
        self.application = choose_application(self.policy, apply, optimizer)
        self._model = MultimodalModel(
            model,
            encoders,
            head,
            classifiers=classifiers,
            policy=self.policy,
            application=self.application,
            flatten=flatten,
        )
        if self.application == "update":
            check_updated(self._model.modalities.owned(), self.modalities, optimizer)
        self._model.attach(optimizer, classifier_lr)
        self._stepping = Stepping(self, self._model, self.application)

        self._pending = PendingStep(self.policy)
        self._figures: Mapping[str, Tensor] = {}
        self._fresh = True  # no classifier has learnt anything: a guessed width may still be corrected
        self.statistics = Statistics({})

    @property
    def active(self) -> bool:
        """Whether the policy acts, True at first; set it from the training loop to start or stop balancing.

        While False the model trains as without the wrapper, and the classifiers learn on. Not part of checkpoints.
        """
        return self._pending.policy is self.policy

    @active.setter
    def active(self, active: bool) -> None:
        self._pending.policy = self.policy if active else Joint()
        self._model.modalities.set_dropout(active)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities' names, in the order of every `[M]` tensor."""
        return self._model.modalities.names

    @property
    def gradient_buffers(self) -> tuple[Tensor, ...]:
        """With `flatten=True` all gradients as they are now, modality by modality: one `[N]` per dtype and device."""
        return () if self._model.flat is None else self._model.flat.buffers()

    @torch._disable_dynamo  # as torch's own optimizers do it: no part of the graph of a compiled training step
    def balance(self, loss: Tensor, target: Tensor) -> Tensor:
        """The loss to go backward from: the multimodal loss, the classifiers' losses and the direction term.

        Runs the classifiers on the features of the forward pass just made, and makes the coefficients from their
        scores. Call it once per forward pass; with gradient accumulation on the undivided loss.

        Args:
            loss: the multimodal loss, 0-dimensional, with its graph.
            target: the batch's target, in a form that the task knows.

        Raises:
            RuntimeError: no forward pass since the last call, gradients disabled.
            ValueError: a loss that is not 0-dimensional, a target of the wrong shape.
        """
        check_loss(loss)
        policy = self._pending.policy
        fit = self._fresh and self._model.replicas.start()
        assessed = assess(self._model, policy, self.task, target, fit=fit)
        self._fresh = False
        self._model.forget()
        if self._pending.backward_ran and self._model.gradients_were_cleared():
            self._pending.clear()  # by model.zero_grad(), after a step that was skipped
        self._pending.add(assessed.scores, target.shape[0])
        self._figures = assessed.figures
        self._tell_junctions()
        total = assessed.total(policy, self._model, loss, self._pending.balance, self._pending.state)
        total.register_hook(self._backward_started)
        return total

    def _backward_started(self, _gradient: Tensor) -> None:
        self._pending.mark_backward()
        self._model.backward_started()

    @torch._disable_dynamo
    def modulate(self) -> None:
        """Apply the coefficients to the gradients now, and measure them; `step()` does it where nobody has.

        For whoever clips or inspects gradients: unscale, modulate, clip, step. Called again it does nothing.

        Raises:
            RuntimeError: `balance()` was called, but its loss has not gone backward.
        """
        with torch.no_grad():
            self._modulate(wait=False)

    def _modulate(self, wait: bool) -> bool:
        """`modulate()`, without gradients enabled; with `wait` the step scales them if it can. Whether it is to."""
        if self._pending.balance is None or self._pending.modulated:
            return False
        owned = self._model.modalities.with_gradients(self._pending.backward_ran, self.base)
        policy, balance = self._pending.policy, self._pending.balance
        self._model.replicas.average_gradients_()
        multiplied = self._model.gathered(owned, policy)
        heads = self._model.head_gradients()
        waits = wait and self._stepping.may_wait(policy)
        application = "feature" if waits else self.application  # which leaves these gradients alone
        measured = modulate_gradients_(multiplied, policy, application, balance.coefficients, heads)
        measured |= {"scores": self._pending.scores, "coefficients": balance.coefficients, **self._figures}
        self._pending.remember(direction.turn_(policy, self._model, balance, measured["cosines"]))
        norms = partial(gradient_norms, owned, balance.coefficients, waits)
        if self._model.replicas.sharded:  # a collective: now, on every rank, not where one happens to read it
            measured.setdefault("grad_norms", norms())
        self.statistics = Statistics(measured, grad_norms=norms)
        self._pending.modulated = True
        return waits

    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Modulate if that is still to be done, step the wrapped optimizer, and commit the policy's state.

        Without a balanced loss since the last step, this is the wrapped optimizer's own step.

        Args:
            closure: re-evaluates the model, calling `balance()` and `backward()`, and returns the loss.
        """
        if closure is None:
            with torch.no_grad():  # around the wrapped optimizer's own step it would be seen by hooks
                folded = self._stepping.step_folded(self._pending, self._modulate(wait=True))
            result = None if folded else self._stepping.step_unfolded(self._pending, None, None)
        else:
            result = self._stepping.step_unfolded(self._pending, closure, self.modulate)
        if self._pending.balance is not None:
            self._pending.commit()
            self._tell_junctions()
        return result

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and forget the scores of a step that was skipped."""
        self.base.zero_grad(set_to_none=set_to_none)
        self._pending.drop_done()
        self._tell_junctions()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer; encoders' new parameters are modulated from now on."""
        super().add_param_group(param_group)
        self._model.modalities.refresh()

    def detach(self) -> None:
        """Take the hooks, the unimodal classifiers and their parameter group off again.

        The model is then as it was before, with what it has learnt, and the wrapped optimizer goes on alone.
        """
        self._model.detach(self.base)

    def _tell_junctions(self) -> None:
        balance = self._pending.balance
        self._model.modalities.set_coefficients(None if balance is None else balance.coefficients)

    def _add_to_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = self._pending.state or direction.initial_state(self.policy, self._model)
        checkpoint.add_entries(state_dict, self.base, self._model.classifiers, state)

    def _load(self, state_dict: dict[str, Any]) -> None:
        expected = direction.initial_state(self.policy, self._model)
        classifiers = self._model.classifiers
        plain, values, state = checkpoint.take_entries(state_dict, self.base, classifiers, expected)
        self.base.load_state_dict(plain)
        self._pending.state = checkpoint.restore(classifiers, values, state)
        self._fresh &= values is None
        self._pending.clear()
        self._tell_junctions()
