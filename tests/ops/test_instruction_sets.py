"""The loops for all machines give the same results as those for AVX2."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set only")
def test_both_instruction_sets_agree(tmp_path):
    program = tmp_path / "compare"
    sources = [Path(__file__).with_name("compare_isa.cpp"), *sorted((ROOT / "csrc/cpu").glob("loops_*.cpp"))]
    includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    flags = ["-O3", "-std=c++17", "-Wno-psabi"]
    built = subprocess.run(
        [COMPILER, *flags, *includes, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    if result.returncode == 77:
        pytest.skip("this machine has no AVX2")
    assert result.returncode == 0, result.stdout
