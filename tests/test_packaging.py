"""What is built installs and trains elsewhere, without the checkout on the path, also where compilers fail."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINING = ROOT / "tests" / "installed.py"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command, env=ENVIRONMENT, **options):
    command = [str(word) for word in command]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def make(target, folder, **environment):
    """Run a target of the Makefile in this environment, without its installation step; its files go to `folder`."""
    made = f"{sys.prefix}/.testable"
    options = {"cwd": ROOT, "env": {**ENVIRONMENT, **environment}}
    return run("make", target, f"VENV={sys.prefix}", f"--old-file={made}", f"DIST={folder}", **options)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that sees this one's packages, but not the editable install of the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # An old one, before the one this test runs with.
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n")
    return python


def install(archive, python, environment=ENVIRONMENT):
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--force-reinstall")
    run(python, "-m", "pip", "install", *options, archive, env=environment)


def info(python, folder):
    return run(python.with_name("cggm"), "info", cwd=folder)


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    make("pure-wheel", folder)
    return folder


@pytest.fixture(scope="module")
def source_distribution(pure):
    (archive,) = pure.glob("*.tar.gz")
    return archive


def test_it_holds_what_a_build_elsewhere_needs(source_distribution):
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", ROOT, "ls-files", "csrc", "cggm_ops", "python").split()
    assert not set(tracked) - names
    assert {"setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_without_kernels_fits_every_platform_and_trains(pure, python, tmp_path):
    (wheel,) = pure.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".failed"))]
    data = {Path(name).name for name in names if "/data/" in name}
    assert {"spoken_digits.npz", "uci_digits.npz", "watch.npz", "WATCH_LICENSE.txt"} <= data
    assert not [name for name in data if name.endswith(".py")]  # the scripts that made them
    install(wheel, python)
    run(python, TRAINING, "reference", cwd=tmp_path)
    assert "no C++ compiler" in info(python, tmp_path)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of packages that holds this environment's setuptools and no torch."""
    folder = tmp_path_factory.mktemp("index")
    setuptools = importlib.metadata.distribution("setuptools")
    files = [file for file in setuptools.files if file.parts[0] != ".." and file.suffix != ".pyc"]
    with zipfile.ZipFile(folder / f"setuptools-{setuptools.version}-py3-none-any.whl", "w") as wheel:
        for file in files:
            wheel.write(file.locate(), file.as_posix())
    return folder


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"CXX": "no-such-compiler"}, set()),
        ({"CXX": "true", "CGGM_PURE_PYTHON": "1"}, set()),
        ({"CXX": "true"}, {"torch", "ninja"}),
    ],
)
def test_an_isolated_build_needs_torch_only_for_a_compiler(
    source_distribution, index, environment, missing, tmp_path
):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--find-links", index]
    command += ["--wheel-dir", tmp_path, source_distribution]
    environment = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": os.devnull, **environment}
    result = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True)
    asked = re.findall(r"No matching distribution found for ([\w-]+)", result.stderr)
    assert set(asked) <= missing, result.stderr  # pip names the first that it does not find
    assert bool(asked) == bool(missing), result.stderr
    assert bool(list(tmp_path.glob("*-none-any.whl"))) == (not missing)


def test_where_the_compiler_fails_it_installs_says_why_and_trains(source_distribution, python, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "CXX": "false"}
    install(source_distribution, python, environment)
    run(python, TRAINING, "reference", cwd=tmp_path)
    said = info(python, tmp_path)
    assert "cpu                 reference operators" in said
    assert "compiled extension  none: the compiled extension could not be built (" in said
    with pytest.raises(AssertionError, match="Error"):
        install(source_distribution, python, {**environment, "CGGM_REQUIRE_EXTENSION": "1"})


@pytest.mark.slow
def test_where_nvcc_fails_the_kernels_for_the_cpu_are_built(source_distribution, python, tmp_path):
    toolkit = tmp_path / "cuda"
    for name, text in {
        "bin/nvcc": "#!/bin/sh\necho refused >&2; exit 1\n",
        "include/cuda_runtime.h": "",
        "c++": '#!/bin/sh\nexec /usr/bin/c++ "$@" -O0\n',  # in a third of the time
    }.items():
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).write_text(text)
        (toolkit / name).chmod(0o755)
    environment = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "CXX": str(toolkit / "c++")}
    environment |= {"CUDA_HOME": str(toolkit), "CGGM_CUDA_ARCHS": "80"}
    install(source_distribution, python, environment)
    run(python, TRAINING, "compiled", cwd=tmp_path)
    said = info(python, tmp_path)
    assert re.search(r"built with cuda +none", said)
    assert re.search(r"built with cuda error +\w*Error: ", said)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
def test_the_wheel_with_kernels_serves_every_python_and_trains(python, tmp_path):
    if sys.platform == "linux":
        pytest.importorskip("auditwheel")
    make("wheel", tmp_path, CGGM_CUDA_ARCHS="")  # CUDA would take minutes
    (wheel,) = tmp_path.glob("*.whl")
    platform = "manylinux" if sys.platform == "linux" else "macosx"
    assert re.fullmatch(rf"cggm-[\d.]+-cp310-abi3-{platform}_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert "cggm_ops/_C.abi3.so" in names
    assert not [name for name in names if "torch" in Path(name).name.removeprefix("torch_private")]
    install(wheel, python)
    run(python, TRAINING, "compiled", cwd=tmp_path)
    assert "compiled operators" in info(python, tmp_path)
