"""Does this model need balancing? `diagnose` answers before any change to the training."""

from .diagnose import diagnose
from .report import ModalityReport, Report

__all__ = ["ModalityReport", "Report", "diagnose"]
