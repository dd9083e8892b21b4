"""The state of the current optimizer step: its scores and the coefficients computed from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..distributed.collectives import mean_over_ranks
from ..policies.base import CoefficientUpdate, State
from ..policies.plan import Plan
from ..torch_private import foreach_copy_
from .fused import capturing

#: Scores [R, M], and the number of samples they are means over, which may differ: [M] or [R, M].
Part = tuple[Tensor, int | Tensor]
#: Prefixes of the roles' entries in the state; the coefficient role has no prefix.
COMBINER, DROPOUT = "combiner.", "dropout."


class BalancedLoss:
    """A loss that `balance()` returned; its graph holds this object, and without a graph it cannot go backward."""


class StepState:
    """Scores of the micro-batches balanced since the last step, and the policy's coefficients for them.

    Losses before and after their backward pass are tracked separately. `zero_grad()` drops those whose backward pass
    has run, because their step was skipped, and keeps the others. The training loop may call them in any order.

    Args:
        plan: the roles that compute coefficients and dropout rates from scores.
        tell: called with every new update, and with None when nothing is pending any more.
    """

    def __init__(self, plan: Plan, tell: Callable[[CoefficientUpdate | None], None]) -> None:
        self.plan = plan
        self._tell = tell
        self.state: State = {}  # the policy's state after the last step
        self._standing: Tensor | None = (
            None  # [R, M], the last measured scores, where not every step measures
        )
        self._age = 0  # steps since then
        self.clear()

    def clear(self) -> None:
        """Discard everything that is pending."""
        self._tell(None)
        self.update: CoefficientUpdate | None = None
        self.scores: Tensor | None = None  # [R, M], means over all samples so far
        self._measured = True  # whether this step has scores of its own
        self.modulated = False
        self.left_to_step = False  # modulated, except that the fused step still has to apply the coefficients
        self.clipped = False
        self.unrepeatable: str | None = None  # why this step cannot be taken again
        self._waiting: WeakKeyDictionary[BalancedLoss, Part] = WeakKeyDictionary()  # not gone backward yet
        self._open = 0  # how many of those are in `update`
        self._done: Part | None = None  # all losses whose backward pass has run

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_waiting": {}}  # a copy stands between two steps

    @property
    def backward_ran(self) -> bool:
        """Whether the backward pass of a balanced loss has run since the last step."""
        return self._done is not None

    @property
    def rates(self) -> Tensor | None:
        """`[M]`, current rates of an adaptive dropout; None while it still has its initial rates."""
        return self.state.get(DROPOUT + "rates")

    @property
    def measures(self) -> bool:
        """Whether the scores of the current step are due to be measured.

        Raises:
            RuntimeError: a CUDA graph is being captured, which would repeat this step's answer for ever.
        """
        if self.plan.scores.every > 1 and capturing():
            raise RuntimeError("a CUDA graph repeats one step: capture with scores=MaskedScores(every=1)")
        return self._standing is None or self._age >= self.plan.scores.every

    def remeasure(self) -> None:
        """Measure in the next step."""
        self._standing = None

    def add(self, scores: Tensor | None, samples: int | Tensor) -> BalancedLoss:
        """Add a micro-batch, recompute the coefficients, and return its loss, to be kept as long as it can go backward.

        Args:
            scores: `[R, M]`, means over the samples, not finite where there is nothing to score; None for those of the
                last step that measured.
            samples: the number of samples, or `[M]` for each modality.
        """
        loss = BalancedLoss()
        self._waiting[loss] = (self._standing if scores is None else scores, samples)
        # Where the earlier step was modulated and skipped, this micro-batch starts a new one.
        self._propose(None if self.modulated else self._done, scores is not None)
        return loss

    def mark_backward(self, loss: BalancedLoss) -> None:
        """Record that the backward pass of this loss is running; an interrupted one may run again."""
        part = self._waiting.get(loss)
        if part is not None:
            done = part if self._done is None else _together([self._done, part])
            self._done, self._open, _ = done, self._open - 1, self._waiting.pop(loss)

    def drop_waiting(self) -> None:
        """Drop the losses whose backward pass never ran: the training loop skipped their batches."""
        if self._open and self._done is not None:
            self._waiting.clear()
            self._propose(self._done, self._measured)

    def drop_done(self) -> None:
        """Drop the losses whose backward pass has run: their gradients were cleared without a step."""
        if not self._waiting:
            self.clear()
        elif self._done is not None:
            self._propose(None, self._measured)
        self.unrepeatable = None

    @contextlib.contextmanager
    def irrevocable(self, what: str) -> Iterator[None]:
        """Wrap code that changes gradients; after an error in it, `check_whole` raises."""
        self.unrepeatable = f"{what} did not finish, and gradients may have changed already"
        yield
        self.unrepeatable = None

    def check_whole(self) -> None:
        """Reject a step that failed half-way.

        Raises:
            RuntimeError: an earlier attempt at this step failed after it may have changed gradients or parameters.
        """
        if self.unrepeatable is not None:
            raise RuntimeError(
                f"this step cannot be repeated: {self.unrepeatable}; call zero_grad() and go on with the next batch"
            )

    def check_between_steps(self, what: str) -> None:
        """Reject an operation that would change the model between a loss and its step.

        Raises:
            RuntimeError: a balanced loss is pending.
        """
        if self.update is not None:
            raise RuntimeError(f"{what} in the middle of a step: call it after step() or zero_grad()")

    def prepared_commit(self) -> Callable[[], None]:
        """What finishes a step: it makes the policy's pending state its current state, and clears everything pending.

        Nothing is allocated then, and after an interrupt it can be called again.
        """
        standing, age = self._standing, self._age
        if self.plan.scores.every > 1 and self.update is not None:
            standing, age = self.scores, 1 if self._measured else age + 1
        state = self.update.state if self.update is not None else self.state
        into: list[Tensor] = []
        new: list[Tensor] = []
        if self.state.keys() != state.keys():  # copies: the statistics may share tensors with the policy
            state = {name: tensor.clone() for name, tensor in state.items()}
        else:
            # In place: a captured CUDA graph replays onto these addresses. A policy may return one under another name.
            into, new = list(self.state.values()), [state[name] for name in self.state]
            moved = [
                any(n is old for old in into if old is not own) for n, own in zip(new, into, strict=True)
            ]
            new = [n.clone() if m else n for n, m in zip(new, moved, strict=True)]
            state = self.state

        def commit() -> None:
            if into:
                foreach_copy_(into, new)
            self.state, self._standing, self._age = state, standing, age
            self.clear()

        return commit

    def remember(self, more: State) -> None:
        """Add tensors to the policy's next state."""
        if more and self.update is not None:
            self.update = self.update._replace(state={**self.update.state, **more})

    def _propose(self, done: Part | None, measured: bool) -> None:
        """Compute the update from the losses that went backward and those that still may, and only then change this."""
        waiting = list(self._waiting.values())
        scores = mean_over_ranks(*_together(waiting if done is None else [done, *waiting]))  # [R, M]
        state = self.state or initial_state(self.plan, scores[0])
        rows = iter(scores.unbind())
        coefficients, dropout = self.plan.coefficients, self.plan.dropout
        if coefficients is None:
            ones = torch.ones_like(scores[0])
            update = CoefficientUpdate(ones, ones, state)
        else:
            others = {k: v for k, v in state.items() if k.startswith((DROPOUT, COMBINER))}
            own = {k: v for k, v in state.items() if k not in others}
            row = next(rows)
            if coefficients.compares_steps and not measured:
                row = torch.full_like(row, torch.nan)  # nothing new: such a policy then changes nothing
            update = coefficients.balance(row, own)
            update = update._replace(state={**update.state, **others}) if others else update
        if dropout is not None and dropout.adaptive:
            own = dropout.update(next(rows), _part(state, DROPOUT))
            update = update._replace(state=update.state | {DROPOUT + k: v for k, v in own.items()})
        self._tell(update)
        self.modulated = self.left_to_step = self.clipped = False
        self.update, self.scores, self._done, self._open = update, scores, done, len(waiting)
        self._measured = measured

    def limit(self, joint: Tensor) -> Tensor:
        """The combiner's limit on the gradient norm, given joint training's norm `[]`; saves the combiner's state.

        A step that is tried again has the same limit.
        """
        state = self.state or initial_state(self.plan, self.scores[0])
        limit, own = self.plan.combiner.limit(joint, _part(state, COMBINER))
        self.remember({COMBINER + k: v for k, v in own.items()})
        return limit


def initial_state(plan: Plan, scores: Tensor) -> State:
    """The initial state of all roles, on the device of `scores` `[M]`."""
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
    """Means over the samples of all parts. Scores that are not finite do not count."""
    if len(parts) == 1:
        return parts[0]
    counts = [torch.isfinite(scores) * samples for scores, samples in parts]  # [R, M] each
    sums = [scores.masked_fill(n == 0, 0) * n for (scores, _), n in zip(parts, counts, strict=True)]
    total = sum(counts[1:], counts[0])
    return sum(sums[1:], sums[0]) / total, total
