"""`Experiment` and its parts, under the name that users import."""

from .datasets.experiment import Experiment, Split, Splits

__all__ = ["Experiment", "Split", "Splits"]
