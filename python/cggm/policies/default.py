"""The policy that the wrapper has where none is named, and that the demo, the README and the command line recommend."""

from __future__ import annotations

from .base import Policy
from .dropout import ModalityDropout
from .equalization import NormEqualization


def default_policy() -> Policy:
    """Norm equalization with steps of SGD no longer than joint training's, and modality dropout at 0.2.

    >>> default_policy().combiner, default_policy().dropout
    (NormEqualization(bounded=True), ModalityDropout(p=0.2, fill=1e-06))
    """
    return NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6)
