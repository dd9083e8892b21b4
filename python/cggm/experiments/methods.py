"""The methods that can be compared: the one table of their names and settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cggm import CGGM, Policy, UnimodalLosses


class Method(NamedTuple):
    """A policy for the optimizer wrapper, or none for plain joint training, and what its recipe adds.

    Args:
        policy: makes the policy; None trains jointly with the plain optimizer.
        clip: norm to which the gradient of the model's own parameters is clipped after modulation.
    """

    policy: Callable[[], Policy] | None = None
    clip: float | None = None


METHODS = {
    "joint": Method(),
    "unimodal": Method(UnimodalLosses),
    "cggm": Method(CGGM),
    # The published forms' coefficients are unbounded; their experiments clip at 0.8.
    "cggm-paper": Method(lambda: CGGM.paper(rho=1.3, lam=0.2), clip=0.8),
    "cggm-released": Method(lambda: CGGM.released(rho=1.3, lam=0.2), clip=0.8),
}


def check_methods(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetitions, in the order given.

    Raises:
        ValueError: no names, or one that is not in `METHODS`.

    >>> check_methods(["joint", "cggm", "joint"])
    ('joint', 'cggm')
    """
    chosen = tuple(dict.fromkeys(names))
    if not chosen:
        raise ValueError(f"methods must name at least one of {list(METHODS)}")
    for name in chosen:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"methods: unknown method {name!r}{hint}; there are {list(METHODS)}")
    return chosen
