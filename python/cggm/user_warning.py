"""Warnings that point at the line of the user's code that led to them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

_LIBRARIES = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost call from outside this library and torch, whose wrappers around a call vary."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
