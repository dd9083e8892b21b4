"""Callbacks and trackers for other packages, and a live view; each module imports its package, this one none.

W&B and MLflow get the statistics through the loggers of Lightning, the Trainer or Accelerate.
"""
