"""The methods that can be compared: the one table of their names and settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cggm import policies
from cggm.policies import CGGM, Policy, UnimodalLosses


class Method(NamedTuple):
    """A policy for the optimizer wrapper, or none for plain joint training, and what its recipe adds.

    Args:
        policy: the policy; None trains jointly with the plain optimizer.
        apply: where its coefficients act.
        clip: norm to which the gradient of the model's own parameters is clipped after modulation.
        encoder_rates: factor of each encoder's learning rate, in the order of the modalities; none for 1.
    """

    policy: Policy | None = None
    apply: str = "auto"
    clip: float | None = None
    encoder_rates: tuple[float, ...] = ()


METHODS: Mapping[str, Method] = {
    "joint": Method(),
    "unimodal": Method(UnimodalLosses()),
    "cggm": Method(CGGM()),
    # The published forms' coefficients are unbounded; their experiments clip at 0.8.
    "cggm-paper": Method(CGGM.paper(rho=1.3, lam=0.2), clip=0.8),
    "cggm-released": Method(CGGM.released(rho=1.3, lam=0.2), clip=0.8),
    "ogm-ge": Method(policies.OGMGE(0.3)),
    "agm": Method(policies.AGM(1.0)),
    "mmpareto": Method(policies.MMPareto()),
    "feature-pareto": Method(policies.FeaturePareto()),
    "norm-equalization": Method(policies.NormEqualization()),
    "dgl": Method(policies.DGL()),
    "dgl-weighted": Method(policies.DGL(weight=4.0)),
    "opm": Method(policies.OPM()),
    "mlb": Method(UnimodalLosses() + policies.MLB()),
    "mimo": Method(UnimodalLosses() + policies.MIMO()),
    "smp": Method(
        policies.SMP(stage_steps=190, epoch_steps=19)
    ),  # half of 20 epochs of 1,200 samples in batches of 64
    "tcmax": Method(policies.TCMax()),
    "dropout": Method(policies.ModalityDropout(0.35)),
    "default": Method(policies.NormEqualization() + policies.ModalityDropout(0.2)),
}


def choose_methods(names: Iterable[str]) -> dict[str, Method]:
    """The methods of these names, in the order given.

    Raises:
        ValueError: no names, or one that is not in `METHODS`.

    >>> list(choose_methods(["joint", "cggm", "joint"]))
    ['joint', 'cggm']
    """
    chosen = tuple(dict.fromkeys(names))
    if not chosen:
        raise ValueError(f"methods must name at least one of {list(METHODS)}")
    for name in chosen:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"methods: unknown method {name!r}{hint}; there are {list(METHODS)}")
    return {name: METHODS[name] for name in chosen}
