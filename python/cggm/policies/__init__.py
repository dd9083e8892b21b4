"""Balancing methods, one file each; the roles that they consist of; and the plan that applies them."""

from .agm import AGM
from .base import CoefficientUpdate, Policy, Role
from .cggm import CGGM
from .default import default_policy
from .dgl import DGL
from .dropout import ModalityDropout
from .equalization import NormEqualization
from .mimo import MIMO
from .mlb import MLB
from .mmpareto import FeaturePareto, MMPareto
from .ogm_ge import OGMGE
from .opm import OPM
from .roles import Coefficients, Combiner, Dropout, Objective
from .smp import SMP
from .tcmax import TCMax
from .unimodal import UnimodalLosses

#: Former names: plain joint training is now a policy without roles, and every policy is a composition of roles.
Joint = Composition = Policy

__all__ = [
    "AGM",
    "CGGM",
    "DGL",
    "MIMO",
    "MLB",
    "OGMGE",
    "OPM",
    "SMP",
    "CoefficientUpdate",
    "Coefficients",
    "Combiner",
    "Composition",
    "Dropout",
    "FeaturePareto",
    "Joint",
    "MMPareto",
    "ModalityDropout",
    "NormEqualization",
    "Objective",
    "Policy",
    "Role",
    "TCMax",
    "UnimodalLosses",
    "default_policy",
]
