"""The optimizer step under way: its scores, and the coefficients made from them."""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import sum_over_ranks
from .policies import Policy
from .policies.base import Balance, State


class PendingStep:
    """Scores of the micro-batches balanced since the last step, and what the policy makes of them.

    What has been balanced but not yet gone backward waits apart: `zero_grad()` throws away what went backward
    (its step was skipped) and keeps what is about to, in whichever order the training loop calls them.

    Args:
        policy: turns scores into coefficients.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.clear()

    def clear(self) -> None:
        """Nothing is pending."""
        self.balance: Balance | None = None
        self.scores: Tensor | None = None  # [M], means over all samples so far
        self.modulated = False
        self._waiting: Tensor | None = None  # [M + 1], sums of scores and the number of samples
        self._done: Tensor | None = None  # [M + 1], the same, of losses that went backward

    @property
    def backward_ran(self) -> bool:
        """Whether some balanced loss went backward since the last step."""
        return self._done is not None

    def add(self, scores: Tensor, samples: int, state: State) -> None:
        """Count a micro-batch in: scores `[M]`, means over `samples`; coefficients are made anew."""
        if self.modulated:  # the step of the gradients so far was skipped: these belong to a new one
            self._done = None
            self.modulated = False
        sums = torch.cat([scores, scores.new_ones(1)]) * samples
        self._waiting = sums if self._waiting is None else self._waiting + sums
        self._propose(state)

    def mark_backward(self, _gradient: Tensor | None = None) -> None:
        """The losses balanced so far are going backward now (a tensor hook of theirs)."""
        if self._waiting is not None:
            self._done = self._waiting if self._done is None else self._done + self._waiting
            self._waiting = None

    def drop_done(self, state: State) -> None:
        """Forget what went backward: its gradients have been cleared without a step."""
        if self._waiting is None:
            self.clear()
        elif self._done is not None:
            self._done = None
            self._propose(state)
        self.modulated = False

    def remember(self, more: State) -> None:
        """Have the policy's next state hold further tensors."""
        if self.balance is not None:
            self.balance = self.balance._replace(state={**self.balance.state, **more})

    def _propose(self, state: State) -> None:
        parts = [part for part in (self._done, self._waiting) if part is not None]
        sums = sum_over_ranks(parts[0] if len(parts) == 1 else parts[0] + parts[1])
        self.scores = sums[:-1] / sums[-1]
        self.balance = self.policy.balance(self.scores, state or self.policy.initial_state(self.scores))
