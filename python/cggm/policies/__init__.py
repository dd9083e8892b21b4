"""Balancing methods, one file each."""

from .base import Policy
from .cggm import CGGM
from .unimodal import UnimodalLosses

__all__ = ["CGGM", "Policy", "UnimodalLosses"]
