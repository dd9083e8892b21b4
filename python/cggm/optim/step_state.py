"""The state of the optimizer step under way: its scores, and the coefficients made from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..distributed.collectives import mean_over_ranks
from ..policies.base import CoefficientUpdate, State
from ..policies.plan import Plan
from ..torch_private import foreach_copy_

Part = tuple[Tensor, int]  # scores [R, M], means over so many samples
#: Prefixes of the roles' states; the coefficients' has none.
COMBINER, DROPOUT = "combiner.", "dropout."


class StepState:
    """Scores of the micro-batches balanced since the last step, and what the policy makes of them.

    Losses that have not gone backward yet are kept apart: `zero_grad()` throws away those that went backward (their
    step was skipped) and keeps the others, in whichever order the training loop calls them.

    Args:
        plan: says which roles turn scores into coefficients and dropout rates.
        tell: called with every new update, and with None when nothing is pending any more.
    """

    def __init__(self, plan: Plan, tell: Callable[[CoefficientUpdate | None], None]) -> None:
        self.plan = plan
        self._tell = tell
        self.state: State = {}  # the policy's, as of the last step taken
        self._balanced = 0  # numbers the balanced losses
        self.clear()

    def clear(self) -> None:
        """Nothing is pending."""
        self.update: CoefficientUpdate | None = None
        self.scores: Tensor | None = None  # [R, M], means over all samples so far
        self.modulated = False
        self.left_to_step = False  # modulated, but for coefficients that the fused step applies
        self._failed: str | None = None
        self._waiting: dict[int, Part] = {}  # of losses that have not gone backward, by their numbers
        self._done: Part | None = None  # of losses that went backward
        self._tell(None)

    @property
    def backward_ran(self) -> bool:
        """Whether some balanced loss went backward since the last step."""
        return self._done is not None

    @property
    def rates(self) -> Tensor | None:
        """`[M]`, those of an adaptive dropout for the steps to come; None for the rates that it starts with."""
        return self.state.get(DROPOUT + "rates")

    def add(self, scores: Tensor, samples: int) -> int:
        """Count a micro-batch, make the coefficients anew, and return a number for its loss.

        Args:
            scores: `[R, M]`, means over the samples.
            samples: their number.
        """
        if self.modulated:  # the step of the gradients so far was skipped: these belong to a new one
            self._done = None
            self.modulated = self.left_to_step = False
        self._balanced += 1
        self._waiting[self._balanced] = (scores, samples)
        self._propose()
        return self._balanced

    def mark_backward(self, number: int) -> None:
        """The balanced loss of this number is going backward now."""
        part = self._waiting.pop(number, None)
        if part is not None:
            self._done = part if self._done is None else _together([self._done, part])

    def drop_waiting(self) -> None:
        """Forget the losses that never went backward: the training loop has skipped their batches."""
        if self._waiting and self._done is not None:
            self._waiting.clear()
            self._propose()

    def drop_done(self) -> None:
        """Forget what went backward: its gradients have been cleared without a step."""
        self._failed = None
        if not self._waiting:
            self.clear()
        elif self._done is not None:
            self._done = None
            self._propose()
        self.modulated = self.left_to_step = False

    @contextlib.contextmanager
    def irrevocable(self, what: str) -> Iterator[None]:
        """Around what changes gradients or parameters: after an error in it, `check_whole` refuses to go on."""
        try:
            yield
        except BaseException as error:
            self._failed = f"{what} failed with {type(error).__name__}"
            raise

    def check_whole(self) -> None:
        """Refuse to go on with a step that has failed half-way.

        Raises:
            RuntimeError: it has.
        """
        if self._failed is not None:
            raise RuntimeError(
                f"this step cannot be repeated: {self._failed}, and gradients or parameters may have changed already; "
                "call zero_grad() and go on with the next batch"
            )

    def check_between_steps(self, what: str) -> None:
        """Refuse what would change the model between a loss and its step.

        Raises:
            RuntimeError: a balanced loss is pending.
        """
        if self.update is not None:
            raise RuntimeError(f"{what} in the middle of a step: call it after step() or zero_grad()")

    def commit(self) -> None:
        """The step has been taken: the policy's next state is its state now, and nothing is pending."""
        state = self.update.state if self.update is not None else self.state
        if self.state.keys() != state.keys():  # copies: a policy may keep what the statistics show
            self.state = {name: tensor.clone() for name, tensor in state.items()}
        elif state:
            # In place: a captured CUDA graph replays onto these addresses. A policy may have moved one to another name.
            into = list(self.state.values())
            new = [state[name] for name in self.state]
            moved = [
                any(n is old for old in into if old is not own) for n, own in zip(new, into, strict=True)
            ]
            foreach_copy_(into, [n.clone() if m else n for n, m in zip(new, moved, strict=True)])
        self.clear()

    def remember(self, more: State) -> None:
        """Add further tensors to the policy's next state."""
        if more and self.update is not None:
            self.update = self.update._replace(state={**self.update.state, **more})

    def _propose(self) -> None:
        parts = [*self._waiting.values()] if self._done is None else [self._done, *self._waiting.values()]
        scores = mean_over_ranks(*_together(parts))  # [R, M]
        self.scores = scores
        state = self.state or initial_state(self.plan, scores[0])
        rows = iter(scores.unbind())
        coefficients, dropout = self.plan.coefficients, self.plan.dropout
        if coefficients is None:
            ones = torch.ones_like(scores[0])
            update = CoefficientUpdate(ones, ones, state)
        else:
            others = {k: v for k, v in state.items() if k.startswith((DROPOUT, COMBINER))}
            own = {k: v for k, v in state.items() if k not in others}
            update = coefficients.balance(next(rows), own)
            update = update._replace(state={**update.state, **others}) if others else update
        if dropout is not None and dropout.adaptive:
            own = dropout.update(next(rows), _part(state, DROPOUT))
            update = update._replace(state=update.state | {DROPOUT + k: v for k, v in own.items()})
        self.update = update
        self._tell(update)

    def limit(self, joint: Tensor) -> Tensor:
        """The combiner's limit of the gradient's norm, from joint training's `[]`; its state is remembered."""
        limit, own = self.plan.combiner.limit(joint, _part(self.update.state, COMBINER))
        self.remember({COMBINER + k: v for k, v in own.items()})
        return limit


def initial_state(plan: Plan, scores: Tensor) -> State:
    """The state of all roles before the first step, on the device of `scores` `[M]`."""
    state: State = {}
    if plan.coefficients is not None:
        state |= plan.coefficients.initial_state(scores)
    if plan.bounds_step:
        state |= {COMBINER + k: v for k, v in plan.combiner.initial_state(scores).items()}
    if plan.dropout is not None:
        state |= {DROPOUT + k: v for k, v in plan.dropout.initial_state(scores).items()}
    return state


def _part(state: State, prefix: str) -> State:
    """The state of one role."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _together(parts: Sequence[Part]) -> Part:
    """Means over the samples of all parts. Parts without samples, whose means are NaN, are left out."""
    total, *others = [part for part in parts if part[1] > 0] or parts[:1]
    for scores, samples in others:
        mean, count = total
        total = torch.lerp(mean, scores, samples / (count + samples)), count + samples
    return total
