"""Shapley values: which coalitions of modalities to evaluate, and how to weight their values."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

#: Up to this many modalities every coalition is asked.
EXACT = 4


def coalitions(modalities: int, permutations: int = 4) -> tuple[list[tuple[int, ...]], list[list[float]]]:
    """Coalitions, and the weights of their values in each modality's Shapley value.

    `m_i = Σ_S W[i, S] v(S)` with `v(∅) = 0`, so that the M shares add up to the value of all modalities together. Exact
    for up to 4 modalities; beyond, the mean over random orders in which the modalities join, each order followed
    by its reverse.

    Args:
        modalities: M, `>= 2`.
        permutations: number of random orders beyond 4 modalities, drawn from torch's global random numbers.

    Returns:
        S coalitions, each the sorted numbers of its members, all modalities together last; weights `[M][S]`.

    Source: Li et al., Adaptive Gradient Modulation, ICCV 2023, section 3.

    >>> coalitions(2)
    ([(0,), (1,), (0, 1)], [[0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]])
    """
    everyone = tuple(range(modalities))
    weights = _exact(modalities) if modalities <= EXACT else _sampled(modalities, permutations)
    asked = sorted(weights, key=lambda coalition: (coalition == everyone, len(coalition), coalition))
    return asked, [[weights[coalition][i] for coalition in asked] for i in everyone]


def _exact(modalities: int) -> dict[tuple[int, ...], list[float]]:
    weights = {}
    for bits in range(1, 2**modalities):
        members = tuple(i for i in range(modalities) if bits >> i & 1)
        size = len(members)
        # |S|! (M − |S| − 1)! / M! for the coalition S that a modality joins, of size − 1 or of size
        joined = 1 / (modalities * comb(modalities - 1, size - 1))
        left_out = -1 / (modalities * comb(modalities - 1, size)) if size < modalities else 0.0
        weights[members] = [joined if i in members else left_out for i in range(modalities)]
    return weights


def _sampled(modalities: int, permutations: int) -> dict[tuple[int, ...], list[float]]:
    weights: dict[tuple[int, ...], list[float]] = {}
    share = 1 / (2 * permutations)
    for _ in range(permutations):
        order = torch.randperm(modalities).tolist()
        for direction in (order, order[::-1]):
            before: tuple[int, ...] = ()
            for i in direction:
                after = tuple(sorted((*before, i)))
                weights.setdefault(after, [0.0] * modalities)[i] += share
                if before:
                    weights[before][i] -= share
                before = after
    return weights


class ShapleyAttribution:
    """The coalitions' values `v(S)`, and the weights that turn them into each modality's response.

    Args:
        values: S tensors in the shape of the head's output, with their graphs; the last is for all modalities.
        weights: `[M, S]` float32.
    """

    def __init__(self, values: Sequence[Tensor], weights: Tensor) -> None:
        self._values = values
        self._weights = weights

    def responses(self) -> list[Tensor]:
        """The M responses `m_i`, outside autograd; they add up to the head's output."""
        stacked = torch.stack([value.detach().float() for value in self._values])  # [S, B, C]
        return list(torch.tensordot(self._weights, stacked, 1))  # M times [B, C]

    def term(self, loss: Tensor, coefficients: Tensor) -> Tensor:
        """A loss term of value 0 that multiplies the gradient entering `m_i` by `coefficients[i]`.

        With `δ` the loss's gradient at the head's output, `v(S)` receives `Σ_i c_i W[i, S] δ` instead of the plain
        gradient. The term is part of the loss, so it is scaled and accumulated with it.

        Args:
            loss: the multimodal loss, 0-dimensional.
            coefficients: `[M]`.
        """
        everyone = self._values[-1]
        (gradient,) = torch.autograd.grad(loss, everyone, retain_graph=True)
        shares = coefficients @ self._weights  # [S]
        # At least float32: a loss scale of 65536 enters this sum in the backward pass, and float16 ends at 65504.
        wide = torch.promote_types(everyone.dtype, torch.float32)
        wanted = sum(
            value.to(wide) * share.to(wide) for value, share in zip(self._values, shares, strict=True)
        )
        change = wanted - everyone.to(wide)
        return ((change - change.detach()) * gradient).sum()
