"""The choice of the implementation, with and without the compiled extension."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cggm_ops

# Without this, an editable installation would find the extension in the checkout.
ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""
WITHOUT_EXTENSION = (
    ALONE
    + """
import torch, cggm_ops
assert cggm_ops.__file__.startswith({folder!r}), cggm_ops.__file__
assert cggm_ops.backend("cpu") == "reference" and cggm_ops.build_info() is None
assert "compiler" in cggm_ops.missing_reason()
grads = [torch.tensor([3.0, 4.0], requires_grad=False)]
cosines, sq_norms = cggm_ops.modulate_(grads, [0], torch.tensor([2.0]), torch.ones(2), [torch.ones(2)])
assert grads[0].tolist() == [6.0, 8.0] and sq_norms.tolist() == [100.0, 0.0] and cosines.item() == 1.0
assert grads[0]._version == 1
fusion = torch.tensor([3.0, 4.0], requires_grad=True)
cggm_ops.batched_cosine(fusion, torch.tensor([[1.0, 0.0]])).sum().backward()
assert torch.allclose(fusion.grad, torch.tensor([0.128, -0.096]))
"""
)


def run_copy(folder, program, **files):
    """Run a program with a copy of the package's Python files and with additional files."""
    package = folder / "cggm_ops"
    shutil.copytree(
        Path(cggm_ops.__file__).parent, package, ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": ""},
    )


def test_everything_works_without_the_extension(tmp_path):
    result = run_copy(tmp_path, WITHOUT_EXTENSION.format(folder=str(tmp_path)))
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="no extension is loaded")
def test_an_extension_that_cannot_be_loaded_is_no_reason_to_go_on_without(tmp_path):
    result = run_copy(tmp_path, ALONE + "import cggm_ops", _C="raise ImportError('an undefined symbol')")
    assert result.returncode != 0
    assert "an undefined symbol" in result.stderr


def test_the_reference_serves_float64_on_a_gpu():
    class OnGPU(torch.Tensor):
        is_cuda = True

    scale, single, double = cggm_ops.schema.scale_, torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert cggm_ops.schema.serving(scale, [OnGPU(single), OnGPU(double)]) is cggm_ops.reference.scale_
    assert cggm_ops.schema.serving(scale, [OnGPU(single)]) is scale
    assert cggm_ops.schema.serving(scale, [double]) is scale


def test_build_information():
    info = cggm_ops.build_info()
    if info is None:
        assert cggm_ops.backend("cpu") == "reference"
        pytest.skip("no compiled extension here")
    assert cggm_ops.backend("cpu") == "compiled"
    assert {"compiler", "isa", "openmp", "cuda", "cuda_architectures"} <= set(info)
    assert info["isa"] in ("avx2", "sse2", "neon", "generic")
    assert cggm_ops.missing_reason() is None
