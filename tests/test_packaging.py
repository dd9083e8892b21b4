"""The source distribution builds, installs and trains elsewhere, without the checkout on the path."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINING = """
import cggm, cggm_ops, sys, torch
from cggm import CGGM, CGGMOptimizerWrapper
assert cggm.__file__.startswith(sys.prefix) and cggm_ops.__file__.startswith(sys.prefix)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (torch.nn.Linear(i, o) for i, o in ((5, 4), (6, 4), (8, 3)))
    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1).relu())
torch.manual_seed(0)
model = Model()
optimizer = CGGMOptimizerWrapper(torch.optim.SGD(model.parameters(), lr=0.2), model,
                                 encoders={"a": "a", "b": "b"}, head="head", policy=CGGM(), apply="gradient")
a, b = torch.randn(64, 5), torch.randn(64, 6)
target = (a[:, 0] > 0).long() + (b[:, 0] > 0).long()
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(a, b), target)
    optimizer.balance(loss, target).backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.7 * losses[0], losses
print(cggm_ops.backend("cpu"))
"""


def run(*command, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", target, ROOT)
    (archive,) = target.glob("*.tar.gz")
    return archive


def install(archive, folder, environment=None):
    """A fresh environment that sees this one's packages, but not the editable install of the checkout."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(
        python, "-m", "pip", "uninstall", "--yes", "setuptools"
    )  # an old one, before the one this test runs with
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        python,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        archive,
        env=environment,
    )
    return python


def test_it_holds_what_a_build_elsewhere_needs(source_distribution):
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", ROOT, "ls-files", "csrc", "cggm_ops", "python").split()
    assert not set(tracked) - names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_a_wheel_holds_the_data_but_not_the_scripts_that_made_them(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler"}  # no extension: built in seconds
    copy = tmp_path / "checkout"
    for name in run(
        "git", "-C", ROOT, "ls-files", "*.py", "*.toml", "*.in", "README.md", "LICENSE", "python"
    ).split():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path,
        copy,
        env=environment,
    )
    (wheel,) = tmp_path.glob("*.whl")
    data = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/data/" in name}
    assert {"spoken_digits.npz", "uci_digits.npz", "watch.npz", "WATCH_LICENSE.txt"} <= data
    assert not [name for name in data if name.endswith(".py")]


def test_a_compiler_that_fails_leaves_its_reason_and_a_package_that_works(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    library = tmp_path / "lib"
    build = (sys.executable, "setup.py", "build", "--build-base", tmp_path / "base", "--build-lib", library)
    environment = {"CXX": str(compiler), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert "installing without" in run(*build, cwd=ROOT, env=environment)
    program = "import cggm_ops; print(cggm_ops.__file__, cggm_ops.backend('cpu'), cggm_ops.missing_reason())"
    said = run(sys.executable, "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(library)})
    assert said.startswith(
        f"{library}/cggm_ops/__init__.py reference the compiled extension could not be built ("
    )
    with pytest.raises(AssertionError, match="Error"):
        run(*build, cwd=ROOT, env={**environment, "CGGM_REQUIRE_EXTENSION": "1"})


@pytest.mark.slow
def test_installed_elsewhere_it_trains_on_the_compiled_kernels(source_distribution, tmp_path):
    python = install(source_distribution, tmp_path / "venv")
    assert run(python, "-c", TRAINING, cwd=tmp_path).strip() == "compiled"


@pytest.mark.slow
def test_without_a_compiler_it_installs_and_trains_on_the_reference(source_distribution, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "CXX": "no-such-compiler"}
    python = install(source_distribution, tmp_path / "venv", environment)
    assert run(python, "-c", TRAINING, cwd=tmp_path).strip() == "reference"
    info = run(python, "-c", "import cggm_ops; print(cggm_ops.missing_reason())", cwd=tmp_path)
    assert "compiler" in info
