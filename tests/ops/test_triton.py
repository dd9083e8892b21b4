"""The Triton kernels without a GPU: right under the interpreter, and compiled to fast machine code."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import cggm_ops
from helpers import NoHostRead

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@needs_triton
def test_the_reference_serves_operators_without_a_triton_kernel():
    program = """
import torch, cggm_ops
param = torch.ones(2)
with cggm_ops.use_backend("triton"):
    cggm_ops.sgd_([param], [torch.ones(2)], settings=cggm_ops.SGDSettings(lr=0.5))
    gram = cggm_ops.segment_gram([[torch.ones(3)], [torch.full((3,), 2.0)]])
assert param.tolist() == [0.5, 0.5]
assert gram.tolist() == [[[3.0, 6.0], [6.0, 12.0]]]
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


@needs_triton
def test_no_operator_waits_for_the_device_on_its_way_to_the_kernels():
    from cggm_ops import triton
    from cggm_ops.triton import modulation, optimizers

    kernels = [(m, name) for m in (modulation, optimizers) for name in vars(m) if name.endswith("_kernel")]
    assert len(kernels) == 6
    grads, others, states, squares = ([torch.rand(5), torch.rand(3, 2)] for _ in range(4))
    coefficients, fusion, unimodal = torch.ones(2), torch.rand(7), [torch.rand(7), torch.rand(7)]
    scales = ([0, 1], coefficients, coefficients)
    with contextlib.ExitStack() as stack:
        for module, name in kernels:
            stack.enter_context(mock.patch.object(module, name, mock.MagicMock()))
        stack.enter_context(NoHostRead())
        triton.scale_(grads, [0, 1], coefficients)
        triton.modulate_(grads, [0, 1], coefficients, fusion, unimodal)
        _, products = triton.batched_cosine(fusion, unimodal)
        triton.batched_cosine_backward(torch.ones(2), products, fusion, unimodal)
        counters = [torch.zeros(()), torch.zeros((), dtype=torch.float64)]
        lists = (others, grads, states, squares)
        triton.adamw_(*lists, counters, *scales, 0.1, 0.9, 0.99, 1e-8, 0.1, True, False)
    assert counters == [1, 1]


@needs_triton
def test_streams_do_not_share_tables(monkeypatch):
    from cggm_ops.triton import tables

    made = []

    @tables.kept
    def table(number):
        made.append(number)
        return torch.tensor(number)

    class Stream:
        cuda_stream = 1

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    first = table(5)
    assert table(5) is first
    Stream.cuda_stream = 2
    second = table(5)
    assert second is not first
    assert table(5) is second
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert table(5) is not second
    assert made == [5, 5, 5]


def run(program, *arguments, **environment):
    """Run a program of this folder in its own process: importing Triton decides about the interpreter."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(HERE / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**inherited, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@needs_triton
@pytest.mark.slow
def test_every_kernel_is_right_under_the_interpreter():
    # Leave out large numbers of tensors: they test the tables of the CUDA kernels, and are slow to interpret.
    out = run("kernel_checks.py", "--backend", "triton", "--without", "many", TRITON_INTERPRET="1")
    assert out.strip().endswith("27 checks passed on cpu"), out


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_kernel_compiles_without_local_memory_and_with_wide_accesses(architecture, tmp_path):
    lines = run("triton_ahead_of_time.py", architecture, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = [json.loads(line) for line in lines]
    assert len(kernels) == 10
    for kernel in kernels:
        assert kernel["local"] == kernel["spills"] == 0, kernel
        if kernel["dtype"] is not None:
            assert 128 in kernel["loads"], kernel
        if kernel["kernel"] in ("scale_kernel", "backward_kernel", "adamw_kernel"):
            assert 128 in kernel["stores"], kernel


def test_triton_is_not_imported_before_it_is_used():
    program = (
        "import sys, torch; before = set(sys.modules); import cggm_ops; print(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "cggm_ops.triton" not in result.stdout.split()
    assert "triton" not in result.stdout.split()


def test_forcing_a_backend():
    before = cggm_ops.backend("cpu")
    with cggm_ops.use_backend("reference"):
        assert cggm_ops.backend("cpu") == cggm_ops.backend("cuda") == "reference"
        with (
            pytest.raises(RuntimeError, match="use_backend block is active"),
            cggm_ops.use_backend("reference"),
        ):
            pass
    assert cggm_ops.backend("cpu") == before
    with (
        pytest.raises(ValueError, match='"triton" or "compiled", found \'fast\''),
        cggm_ops.use_backend("fast"),
    ):
        pass
