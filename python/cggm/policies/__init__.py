"""Balancing methods, one file each."""

from .agm import AGM
from .base import Joint, Policy
from .cggm import CGGM
from .composition import Composition
from .dgl import DGL
from .dropout import ModalityDropout
from .equalization import NormEqualization
from .mmpareto import FeaturePareto, MMPareto
from .ogm_ge import OGMGE
from .unimodal import UnimodalLosses

__all__ = [
    "AGM",
    "CGGM",
    "DGL",
    "OGMGE",
    "Composition",
    "FeaturePareto",
    "Joint",
    "MMPareto",
    "ModalityDropout",
    "NormEqualization",
    "Policy",
    "UnimodalLosses",
]
