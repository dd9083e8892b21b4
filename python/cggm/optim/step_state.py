"""The optimizer step under way: its scores, and the coefficients made from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.collectives import mean_over_ranks
from ..policies import Policy
from ..policies.base import Balance, State

Part = tuple[Tensor, int]  # scores [M], means over so many samples


class PendingStep:
    """Scores of the micro-batches balanced since the last step, and what the policy makes of them.

    What has been balanced but not yet gone backward waits apart: `zero_grad()` throws away what went backward
    (its step was skipped) and keeps what is about to, in whichever order the training loop calls them.

    Args:
        policy: turns scores into coefficients.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: State = {}  # the policy's, as of the last step taken
        self.clear()

    def clear(self) -> None:
        """Nothing is pending."""
        self.balance: Balance | None = None
        self.scores: Tensor | None = None  # [M], means over all samples so far
        self.modulated = False
        self._waiting: Part | None = None
        self._done: Part | None = None  # of losses that went backward

    @property
    def backward_ran(self) -> bool:
        """Whether some balanced loss went backward since the last step."""
        return self._done is not None

    def add(self, scores: Tensor, samples: int) -> None:
        """Count a micro-batch in: scores `[M]`, means over `samples`; coefficients are made anew."""
        if self.modulated:  # the step of the gradients so far was skipped: these belong to a new one
            self._done = None
            self.modulated = False
        self._waiting = _together(self._waiting, (scores, samples))
        self._propose()

    def mark_backward(self) -> None:
        """The losses balanced so far are going backward now."""
        if self._waiting is not None:
            self._done = _together(self._done, self._waiting)
            self._waiting = None

    def drop_done(self) -> None:
        """Forget what went backward: its gradients have been cleared without a step."""
        if self._waiting is None:
            self.clear()
        elif self._done is not None:
            self._done = None
            self._propose()
        self.modulated = False

    def commit(self) -> None:
        """The step has been taken: the policy's next state is its state now, and nothing is pending."""
        state = self.balance.state if self.balance is not None else self.state
        if self.state.keys() != state.keys():  # copies: a policy may keep what the statistics show
            self.state = {name: tensor.clone() for name, tensor in state.items()}
        elif state:
            # In place: a captured CUDA graph replays onto these addresses. A policy may have moved one to another name.
            into = list(self.state.values())
            new = [state[name] for name in self.state]
            moved = [
                any(n is old for old in into if old is not own) for n, own in zip(new, into, strict=True)
            ]
            torch._foreach_copy_(into, [n.clone() if m else n for n, m in zip(new, moved, strict=True)])
        self.clear()

    def remember(self, more: State) -> None:
        """Have the policy's next state hold further tensors."""
        if more and self.balance is not None:
            self.balance = self.balance._replace(state={**self.balance.state, **more})

    def _propose(self) -> None:
        self.scores = mean_over_ranks(*_together(self._done, self._waiting))
        state = self.state or self.policy.initial_state(self.scores)
        self.balance = self.policy.balance(self.scores, state)


def _together(one: Part | None, other: Part | None) -> Part:
    """Means over the samples of both; at least one is there. One without samples, whose means are NaN, is left out."""
    parts = [part for part in (one, other) if part is not None]
    parts = [part for part in parts if part[1] > 0] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    (first, count), (second, more) = parts
    return torch.lerp(first, second, more / (count + more)), count + more
