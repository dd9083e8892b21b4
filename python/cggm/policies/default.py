"""The wrapper's default policy; the demo, the README and the command line recommend it too."""

from __future__ import annotations

from .base import Policy
from .dropout import ModalityDropout
from .equalization import NormEqualization


def default_policy() -> Policy:
    """Norm equalization with SGD steps bounded by joint training's, plus modality dropout at 0.2.

    >>> default_policy().combiner, default_policy().dropout
    (NormEqualization(bounded=True), ModalityDropout(p=0.2, fill=1e-06))
    """
    return NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6)
