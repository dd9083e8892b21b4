"""setuptools' build backend, but torch and ninja are asked for only where there is a compiler to build kernels with."""

import os
import shutil
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks are setuptools' own

KERNEL_NEEDS = ["torch>=2.11", "ninja"]


def _with_kernel_needs(requires: list[str]) -> list[str]:
    compiler = os.environ.get("CXX", "c++").split()[0]
    pure = os.environ.get("CGGM_PURE_PYTHON") == "1"
    return requires if pure or shutil.which(compiler) is None else [*requires, *KERNEL_NEEDS]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what `pip wheel` and `pip install` put into the build environment."""
    return _with_kernel_needs(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what `pip install --editable` puts into the build environment."""
    return _with_kernel_needs(build_meta.get_requires_for_build_editable(config_settings))
