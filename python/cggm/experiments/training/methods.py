"""The methods that can be compared: the one table of their names and settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from cggm import policies
from cggm.policies import CGGM, Policy, UnimodalLosses

ENCODER_FACTORS = (0.25, 4.0)  # "encoder-rates": one encoder at this multiple of the learning rate


class Method(NamedTuple):
    """How to train: a policy for the optimizer wrapper, or plain joint training, and settings beside it.

    Args:
        policy: the policy; None trains with the plain optimizer.
        apply: where the policy's coefficients act.
        clip: norm to which the gradient of the model's own parameters is clipped after modulation.
        encoder_rates: factors on the encoders' learning rates, in the order of the modalities, or one factor for all
            of them; `()` means 1.
        fusion: `"model"` trains the experiment's model; `"ensemble"` trains a model per modality on its own and
            averages their probabilities; `"late"` trains these models together on the average of their logits.
    """

    policy: Policy | None = None
    apply: str = "auto"
    clip: float | None = None
    encoder_rates: tuple[float, ...] | float = ()
    fusion: Literal["model", "ensemble", "late"] = "model"


METHODS: Mapping[str, Method] = {
    "joint": Method(),
    "joint-clipped": Method(clip=1.0),
    "joint-faster-encoders": Method(encoder_rates=4.0),
    "ensemble": Method(fusion="ensemble"),
    "late-fusion": Method(fusion="late"),
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
    # Half of 20 epochs of 1,200 samples in batches of 64, as of avdigits.
    "smp": Method(policies.SMP(stage_steps=190, epoch_steps=19)),
    "tcmax": Method(policies.TCMax(max_rows=4096, sampled=True)),  # all pairs of 64 samples
    "dropout": Method(policies.ModalityDropout(0.35)),
    "default": Method(policies.default_policy()),
}


def encoder_rates(modalities: int) -> dict[str, Method]:
    """Joint training with one encoder slower or faster than the rest of the model.

    >>> list(encoder_rates(2))
    ['joint, rates 0.25 1', 'joint, rates 4 1', 'joint, rates 1 0.25', 'joint, rates 1 4']
    """
    made = {}
    for encoder in range(modalities):
        for factor in ENCODER_FACTORS:
            rates = tuple(factor if i == encoder else 1.0 for i in range(modalities))
            made["joint, rates " + " ".join(f"{rate:g}" for rate in rates)] = Method(encoder_rates=rates)
    return made


#: Names that stand for several methods: name -> a function of the number of modalities.
GROUPS: Mapping[str, Callable[[int], dict[str, Method]]] = {"encoder-rates": encoder_rates}


def choose_methods(names: Iterable[str], modalities: int = 2) -> dict[str, Method]:
    """The methods of these names, in the order given.

    Args:
        names: keys of `METHODS` or `GROUPS`.
        modalities: number of modalities, for `GROUPS`.

    Raises:
        ValueError: no names, or an unknown one.

    >>> list(choose_methods(["joint", "cggm", "joint"]))
    ['joint', 'cggm']
    """
    chosen: dict[str, Method] = {}
    known = [*METHODS, *GROUPS]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"methods: unknown method {name!r}{hint}; allowed are {known}")
        chosen |= GROUPS[name](modalities) if name in GROUPS else {name: METHODS[name]}
    if not chosen:
        raise ValueError(f"methods must name at least one of {known}")
    return chosen
