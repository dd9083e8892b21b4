"""Which implementation of the operators is in use, chosen once per device type at import, and why."""

from __future__ import annotations

import importlib.util

import torch

if importlib.util.find_spec("cggm_ops._C") is None:
    _extension = None
    _reason = (
        "the compiled extension is not there: no C++ compiler was found at installation. Install one (g++ or clang++) "
        "and run `pip install --no-build-isolation --force-reinstall --no-deps` on the sources again"
    )
else:
    # An extension that is there but cannot be loaded raises: nothing falls back silently.
    from cggm_ops import _C as _extension

    _reason = None


def backend(device: str | torch.device = "cpu") -> str:
    """Name the implementation that serves tensors on `device`: "compiled" or "reference".

    Args:
        device: a device, or its name such as "cpu" or "cuda:0".

    Raises:
        RuntimeError: `device` is not the name of a device.

    Example:
        >>> backend("cpu") in ("compiled", "reference")
        True
    """
    return "compiled" if _extension is not None and torch.device(device).type == "cpu" else "reference"


def build_info() -> dict[str, object] | None:
    """Describe the compiled extension, or return None where there is none.

    Returns:
        `compiler`, `isa` (the instruction set chosen on this machine), `openmp` (whether torch's thread pool, which the
        kernels use, is OpenMP's), `cuda` (the toolkit's version or None) and `cuda_architectures` (or None).

    Example:
        >>> (build_info() is None) == (missing_reason() is not None)
        True
    """
    if _extension is None:
        return None
    return {**_extension.build_info(), "openmp": torch.backends.openmp.is_available()}


def missing_reason() -> str | None:
    """Say why there is no compiled extension and how to get it; None where there is one.

    Example:
        >>> reason = missing_reason()
        >>> reason is None or "compiler" in reason
        True
    """
    return _reason
