"""The implementations under test, and inputs for them. One line here adds an implementation to every test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import cggm_ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # operator_cases

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Implementation(NamedTuple):
    name: str
    device: str
    ops: Any  # has the operators as attributes


IMPLEMENTATIONS = [Implementation("reference", "cpu", cggm_ops.reference)]
if cggm_ops.backend("cpu") == "compiled":
    IMPLEMENTATIONS.append(Implementation("compiled", "cpu", torch.ops.cggm_ops))

each_implementation = pytest.mark.parametrize(
    "implementation", IMPLEMENTATIONS, ids=lambda i: f"{i.name}-{i.device}"
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(*shape, dtype=torch.float32, seed=0, scale=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)


def gradients(dtype=torch.float32, seed=0, device="cpu"):
    """Return tensors that cover every path: empty, one element, tails, several chunks, several dimensions."""
    shapes = [(0,), (1,), (7,), (16,), (17, 3), (), (2, 3, 5), (40_001,), (129, 130)]
    return [random(*shape, dtype=dtype, seed=seed + i, device=device) for i, shape in enumerate(shapes)]


OWNER = [0, 1, 2, -1, 0, 1, 2, 0, -1]
COEFFICIENTS = [0.3, -1.7, 1.0]


def coefficients(dtype=torch.float32, device="cpu"):
    return torch.tensor(COEFFICIENTS, dtype=dtype, device=device)


def head(modalities=3, size=1000, dtype=torch.float32, seed=50, device="cpu"):
    """Return a fusion gradient and M others, each more similar to it than the one before."""
    fusion = random(size, dtype=dtype, seed=seed, device=device)
    noise = [random(size, dtype=dtype, seed=seed + 1 + m, device=device) for m in range(modalities)]
    return fusion, [(fusion * m + noise[m]).to(dtype) for m in range(modalities)]


def bits(tensor):
    """Return the bytes: NaN equals NaN, and -0 differs from 0."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(bits(actual), bits(expected))
