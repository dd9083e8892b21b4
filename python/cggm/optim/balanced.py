"""Everything a balancing optimizer offers outside a step, checkpoints included; the step is in `optimizer.py`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_flag
from ..deprecated import warn_renamed
from ..model.gradient_buffers import GradientBuffers
from ..model.inspection import Explanation, explain
from ..model.multimodal import MultimodalModel
from ..model.relearning import Batches, Relearning, relearn
from ..policies import Policy
from ..policies.base import CoefficientUpdate, ScaleTarget
from ..policies.plan import Plan
from ..torch_private import disable_dynamo
from . import checkpoint, direction
from .base import OptimizerWrapper
from .notices import Notices
from .step import StepExecutor
from .step_state import StepState


class BalancedOptimizer(OptimizerWrapper):
    """An optimizer with a plan, a multimodal model and the state of a step; the subclass creates all three."""

    _plan: Plan
    _model: MultimodalModel
    _state: StepState
    _executor: StepExecutor
    _buffers: GradientBuffers | None
    _notices: Notices
    _fresh: bool  # no classifier has been trained yet, so a guessed width may still be corrected

    @property
    def policy(self) -> Policy:
        """The balancing method, as a composition of its roles."""
        return self._plan.policy

    @property
    def scale_target(self) -> ScaleTarget | None:
        """What the coefficients scale: `apply`, with `"auto"` resolved; None for a policy without coefficients."""
        return self._plan.scale_at

    @property
    def active(self) -> bool:
        """Whether balancing is on. It starts as True; the training loop may set it at any time.

        While it is False, the model trains as if there were no wrapper, and the unimodal classifiers keep training.
        Checkpoints do not save it.
        """
        return self._state.plan is self._plan

    @active.setter
    def active(self, active: bool) -> None:
        check_flag("active", active)
        self._state.plan = self._plan if active else self._plan.paused()
        self._state.remeasure()
        self._model.encoders.set_active(active)

    @property
    def record(self) -> bool:
        """Whether `statistics` also has what a step does not need. It starts as False; set it between two steps.

        Each step then measures `grad_norms` (else the first read does), and where a combiner acts at the encoders'
        outputs `unimodal_shares`, `angles` and `step_changes`. That costs three launches per encoder and a few per
        step, and no host synchronization. Several processes must all set it. Checkpoints do not save it.
        """
        return self._model.encoders.record.on

    @record.setter
    def record(self, record: bool) -> None:
        check_flag("record", record)
        self._state.check_between_steps("record")
        if record:
            self._model.encoders.record.start(self._model.device)
        else:
            self._model.encoders.record.stop()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities' names, in the order of every `[M]` tensor."""
        return self._model.encoders.names

    @property
    def uses_fused_step(self) -> bool:
        """Whether a balanced step runs in this library's kernels, which apply the coefficients themselves.

        A fused step does not change `.grad`. `fused_step.unsupported_reason()` says why a step cannot be fused.
        """
        return self._executor.uses_fused_step(self._plan)

    @property
    def folded(self) -> bool:
        """The former name of `uses_fused_step`."""
        warn_renamed("optimizer.folded", "optimizer.uses_fused_step")
        return self.uses_fused_step

    def flatten_gradients(self) -> None:
        """From now on, every backward pass ends with all gradients in `gradient_buffers`; each `.grad` is a view.

        Raises:
            ValueError: `fully_shard` or DistributedDataParallel already manages the gradients' memory.
            RuntimeError: after `detach()`.
        """
        self._check_attached("flatten_gradients()")
        if self._buffers is None:
            self._buffers = GradientBuffers(self._model.module, self._model.encoders, self._model.context)

    @property
    def gradient_buffers(self) -> tuple[Tensor, ...]:
        """All gradients after `flatten_gradients()`, modality by modality: one `[N]` per dtype and device."""
        return () if self._buffers is None else self._buffers.buffers()

    def explain(self, forward: Callable[[], Tensor], target: Tensor) -> Explanation:
        """Run one batch before training; return a table of what the wrapper found in the model, with warnings.

        Nothing changes: weights, buffers, gradients, scores and the random number generators stay as they were.

        Args:
            forward: runs the model on the batch and returns the multimodal loss.
            target: the batch's target.
        """
        self._check_attached("explain()")
        self._state.check_between_steps("explain()")
        if not callable(forward):
            raise TypeError(f"forward must be a function that runs the model, got {type(forward).__name__}")
        return explain(self, forward, target)

    @disable_dynamo
    def relearn(
        self, train: Batches, validation: Batches, initial: Mapping[str, Tensor], strength: float = 3.0
    ) -> Relearning:
        """Move each encoder back towards `initial` according to its generalization gap.

        See `cggm.model.relearning.relearn`.
        """
        self._check_attached("relearn()")
        self._state.check_between_steps("relearn()")
        return relearn(self._model, train, validation, initial, strength)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer; new encoder parameters are balanced from now on."""
        super().add_param_group(param_group)
        self._model.encoders.refresh()

    def detach(self) -> None:
        """Remove the hooks, the unimodal classifiers and their parameter group.

        The model keeps its trained weights, and the wrapped optimizer can continue on its own. A second call does
        nothing. Where this object is deleted without this call, its hooks do nothing from then on, and wrapping the
        model again removes them.
        """
        if self._at_end.detach() is not None:
            self._model.detach(self.base)
            self._state.clear()

    def _check_attached(self, what: str) -> None:
        if not self._at_end.alive:
            raise RuntimeError(
                f"{what} after detach(): the model has no classifiers and hooks any more; go on with optimizer.base, "
                "or make a new CGGMOptimizerWrapper"
            )

    def _disown_at_end(self) -> None:
        self._at_end = weakref.finalize(self, self._model.disown, self.base)  # neither refers to this object
        self._at_end.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_at_end"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._model.own()
        self._state.clear()  # a copy has no gradients, so no step is pending
        self._disown_at_end()

    def _tell_junctions(self, update: CoefficientUpdate | None) -> None:
        if update is None:
            self._model.encoders.set_coefficients(None, None)
            if self._plan.bounds_step:
                self._model.encoders.shares.start(self._model.device)
            if self.record:
                self._model.encoders.record.start(self._model.device)
        else:
            self._model.encoders.set_coefficients(update.coefficients, update.unimodal_weights)

    def _add_to_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._check_attached("state_dict()")
        state = self._state.state or direction.initial_state(self._plan, self._model)
        checkpoint.add_entries(state_dict, self.base, self._model.classifiers, state)

    @torch.inference_mode(False)  # tensors created in inference mode cannot be updated outside it
    def _load(self, state_dict: dict[str, Any]) -> None:
        self._check_attached("load_state_dict()")
        classifiers, expected = self._model.classifiers, direction.initial_state(self._plan, self._model)
        entries = checkpoint.take_entries(state_dict, self.base, classifiers, expected, self._fresh)
        self._state.state = checkpoint.restore(self.base, classifiers, *entries)
        self._fresh &= entries[1] is None
        self._state.clear()
        self._state.remeasure()
        self._model.encoders.set_rates(self._state.rates)
