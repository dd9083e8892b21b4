"""The CUDA kernels without a GPU: nvcc compiles them without spills, and run on the host they are right."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from test_abi import check_symbols
from torch.utils import cpp_extension

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
ARCHITECTURES = (80, 90, 100)
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))


def test_there_are_kernels():
    assert len(KERNELS) >= 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_compiles_for_every_architecture_without_spills(source, tmp_path):
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    # torch defines these when it builds extensions: conversions must be explicit.
    without = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
    flags = ["-O3", "-std=c++17", "-Xptxas", "-v", *targets, *(f"-D__CUDA_NO_{name}__" for name in without)]
    command = ["nvcc", *flags, "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    entries = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", result.stderr)
    assert {int(arch) for _, arch in entries} == set(ARCHITECTURES)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert len(spills) >= len(entries)
    assert all(spill == ("0", "0") for spill in spills), result.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Build the CUDA sources with the C++ compiler and a header that runs kernels on the host."""
    compiler = shutil.which(os.environ.get("CXX", "c++").split()[0])
    if compiler is None or sys.platform != "linux":
        pytest.skip("this needs a C++ compiler on Linux")
    folder = tmp_path_factory.mktemp("on_host")
    includes = [HERE / "cuda_on_host", CSRC, sysconfig.get_path("include"), *cpp_extension.include_paths()]
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-I{path}" for path in includes]
    sources = [path for path in (CSRC / "cuda").glob("*.c*") if path.suffix in (".cu", ".cpp")]
    objects = []
    for source in [*sources, HERE / "cuda_on_host" / "register.cpp"]:
        if source == CSRC / "cuda" / "register.cpp":
            continue  # included by cuda_on_host/register.cpp
        objects.append(str(folder / f"{source.name}.o"))
        command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True, timeout=300)
    target = folder / "on_host.so"
    link = [compiler, "-shared", "-Wl,-Bsymbolic", *objects, "-o", str(target)]
    link += [f"-L{path}" for path in cpp_extension.library_paths()]
    subprocess.run([*link, "-ltorch", "-ltorch_cpu", "-lc10"], check=True, timeout=300)
    return target


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_sources_need_nothing_that_the_oldest_torch_lacks(library):
    check_symbols(library)


@pytest.mark.slow
def test_every_kernel_is_right_on_the_host(library):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: `make gpu` checks the kernels themselves")
    result = subprocess.run(
        [sys.executable, str(HERE / "kernel_checks.py"), "--library", str(library)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("36 checks passed on cpu"), result.stdout
