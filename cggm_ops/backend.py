"""The implementation of the operators, chosen at import for each type of device."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cggm_ops import direct, schema

_failed = Path(__file__).with_name("_C.failed")  # setup.py writes it
# Only beside this file: an editable installation in the same environment may have another extension.
_is_built = importlib.machinery.PathFinder.find_spec("cggm_ops._C", [os.path.dirname(__file__)]) is not None
_reason: str | None = None
if torch.__version__ < (2, 11):
    _extension = None
    _reason = (
        f"the compiled extension needs torch 2.11 or later, found {torch.__version__}. Upgrade torch, then run `pip "
        "install --no-build-isolation --force-reinstall --no-deps` on the sources if the compiler did not run before"
    )
elif not _is_built:
    _extension = None
    _cause = (
        f"the compiled extension could not be built ({_failed.read_text()})"
        if _failed.exists()
        else "the installation found no C++ compiler, no Python headers (Debian's python3-dev), or no torch 2.11"
    )
    _reason = (
        f"{_cause}. Fix that and run `pip install -v --no-build-isolation --force-reinstall --no-deps` on the sources "
        "again; -v shows what the compiler says"
    )
else:
    # An extension that cannot be loaded raises an error: there is no silent fallback.
    from cggm_ops import _C as _extension

#: The operators that have Triton kernels. With the Triton backend the reference serves the others.
TRITON_OPERATORS = ("adamw_", "batched_cosine", "batched_cosine_backward", "modulate_", "scale_")

# Newer versions of torch override when this argument says so; older ones, when they have forgotten the first kernel.
_OVERRIDE = (
    {"allow_override": True} if "allow_override" in signature(torch.library.Library.impl).parameters else {}
)
_has_triton = importlib.util.find_spec("triton") is not None
_forced: dict[str, str] = {}  # by type of device


def _serve_directly() -> None:
    """Let plain CPU tensors take the short way into the compiled kernels."""
    if _extension is not None:
        direct.FUNCTIONS.update({name: getattr(_extension, name) for name in ("adamw_", "scale_", "sgd_")})


_serve_directly()


def backend(device: str | torch.device = "cpu") -> str:
    """Name the implementation that serves tensors on `device`: "compiled", "triton" or "reference".

    The CPU uses the compiled extension if it is installed. CUDA uses it if it was built with nvcc, else Triton
    if that can be imported. Otherwise the reference, in plain PyTorch, serves. The reference also serves, on CUDA,
    float64 with every backend, and with Triton the operators that are not in `TRITON_OPERATORS`.

    Args:
        device: a device, or its name such as "cpu" or "cuda:0".

    Raises:
        RuntimeError: `device` is not the name of a device.

    Example:
        >>> backend("cpu") in ("compiled", "reference")
        True
    """
    kind = torch.device(device).type
    return _forced.get(kind) or _default(kind)


@contextlib.contextmanager
def use_backend(name: Literal["reference", "triton", "compiled"]) -> Iterator[None]:
    """Force one implementation of all operators in all threads until the block ends, for tests and benchmarks.

    Args:
        name: "compiled" and "reference" serve CPU and CUDA tensors. "triton" serves CUDA tensors, and CPU tensors
            in a process that was started with the environment variable TRITON_INTERPRET=1.

    Raises:
        ValueError: `name` is not one of the three.
        RuntimeError: the implementation is not installed, or a block that forces one has not ended.

    Example:
        >>> with use_backend("reference"):
        ...     backend("cpu")
        'reference'
    """
    if name not in ("reference", "triton", "compiled"):
        raise ValueError(f'name must be "reference", "triton" or "compiled", found {name!r}')
    if _forced:
        raise RuntimeError("another use_backend block is active: end it first")
    kinds = _kinds(name)
    library = torch.library.Library(schema.NAMESPACE, "IMPL")
    try:
        if name != "compiled":
            direct.FUNCTIONS.clear()
        for kind in kinds:
            if _default(kind) != name:
                _register(library, name, kind)
            _forced[kind] = name
        yield
    finally:
        _forced.clear()
        _serve_directly()
        library._destroy()


def _kinds(name: str) -> list[str]:
    """Return the types of devices that a forced implementation serves."""
    if name == "compiled":
        if _extension is None:
            raise RuntimeError(f"there are no compiled kernels: {_reason}")
        return [kind for kind in ("cpu", "cuda") if _default(kind) == name]
    if name == "triton":
        if not _has_triton:
            raise RuntimeError("Triton is not installed: pip install triton")
        return ["cpu", "cuda"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cuda"]
    return ["cpu", "cuda"]


def _default(kind: str) -> str:
    compiled = () if _extension is None else ("cpu", "cuda") if _extension.build_info()["cuda"] else ("cpu",)
    if kind in compiled:
        return "compiled"
    return "triton" if kind == "cuda" and _has_triton else "reference"


def _register(library: torch.library.Library, name: str, kind: str) -> None:
    """Register an implementation in Python for a type of device, in place of the present one."""
    for op, definition in schema.DEFINITIONS.items():
        function = _in_triton(op) if name == "triton" and op in TRITON_OPERATORS else definition
        with warnings.catch_warnings():  # overriding is intended
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            if not _OVERRIDE:
                torch.library._impls.discard(f"{schema.NAMESPACE}/{op}/{kind.upper()}")
            library.impl(op, function, kind.upper(), **_OVERRIDE)


def _in_triton(op: str) -> Callable[..., Any]:
    """Return one operator in Triton, which is imported at the first call."""

    def call(first: Tensor | Sequence[Tensor], *others: Any) -> Any:
        from cggm_ops import triton

        tensor = first if isinstance(first, Tensor) else next(iter(first), None)
        # Triton launches on the current device, which need not be the tensor's.
        here = contextlib.nullcontext() if tensor is None else torch.cuda.device_of(tensor)
        with here:
            return getattr(triton, op)(first, *others)

    return call


def build_info() -> dict[str, object] | None:
    """Describe the compiled extension, or return None where there is none.

    Returns:
        `compiler`; `isa`, the instruction set chosen on this machine; `openmp`, whether torch's thread pool, which the
        kernels use, is OpenMP's; `cuda`, the toolkit's version or None; and `cuda_architectures`, or None. Where the
        build of the CUDA kernels failed, `cuda_error` says why.

    Example:
        >>> (build_info() is None) == (missing_reason() is not None)
        True
    """
    if _extension is None:
        return None
    failure = {"cuda_error": _failed.read_text()} if _failed.exists() else {}
    return {**_extension.build_info(), "openmp": torch.backends.openmp.is_available(), **failure}


def missing_reason() -> str | None:
    """Say why there is no compiled extension and how to get it; return None if there is one.

    Example:
        >>> reason = missing_reason()
        >>> reason is None or "compiler" in reason
        True
    """
    return _reason


if _default("cuda") == "triton":
    _library = torch.library.Library(schema.NAMESPACE, "IMPL")
    _register(_library, "triton", "cuda")
