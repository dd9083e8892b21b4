"""Build `cggm_ops._C` from csrc/; everything that is not the extension is declared in pyproject.toml.

CPU kernels are built wherever a C++ compiler and torch 2.11 or later are found. CUDA kernels are built when nvcc is
found and either torch itself is a CUDA build or `CGGM_CUDA_ARCHS` (for instance "80;90", or "default") asks for them.
Where nvcc fails, the CPU kernels are built without it; where the C++ compiler fails, the package installs without
kernels. With CGGM_REQUIRE_EXTENSION=1 the installation fails instead. CGGM_PURE_PYTHON=1 builds no kernels, for one
wheel that fits every platform.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

# Older versions fail to read this pyproject.toml, with a long message that does not say why.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"cggm needs setuptools 77 or later, found {setuptools.__version__}: pip install -U setuptools"
    )

ROOT = Path(__file__).parent
DEFAULT_CUDA_ARCHS = ("80", "90", "100")
# The binary uses the stable ABI of this torch, 2.11, and runs with every later one.
OLDEST_TORCH = (2, 11)
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]


def sources(folder: str, *patterns: str) -> list[str]:
    """Files below `folder`, sorted and relative to this file, as setuptools wants them."""
    found = (path for pattern in patterns for path in (ROOT / folder).glob(pattern))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def cuda_home() -> str | None:
    """Return the folder of the CUDA toolkit. torch's CPU build does not look for it; nvcc on the PATH may be a link."""
    nvcc = shutil.which("nvcc")
    found = [
        os.environ.get("CUDA_HOME"),
        Path(nvcc).resolve().parents[1] if nvcc else None,
        "/usr/local/cuda",
    ]
    homes = (Path(home) for home in found if home)
    needed = ("bin/nvcc", "include/cuda_runtime.h")
    return next((str(home) for home in homes if all((home / path).exists() for path in needed)), None)


def default_archs(home: str) -> str:
    """Return the default architectures that this nvcc can compile for."""
    listing = subprocess.run(
        [f"{home}/bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True
    )
    known = listing.stdout.split()
    return ";".join(arch for arch in DEFAULT_CUDA_ARCHS if f"compute_{arch}" in known)


def cuda_archs(torch) -> str | None:
    """Return the architectures to compile for, or None for a CPU-only extension."""
    if not sources("csrc", "cuda/*.cu") or cuda_home() is None:
        return None
    asked = os.environ.get("CGGM_CUDA_ARCHS")
    if asked is None and torch.version.cuda is not None:
        if torch.cuda.is_available():
            return "".join(map(str, torch.cuda.get_device_capability()))
        asked = "default"
    return default_archs(cuda_home()) if asked == "default" else asked or None


def tolerant(command: type) -> type:
    """Return torch's build command, but a build that fails leaves its reason behind and not a broken installation."""

    class BuildOrExplain(command):
        def run(self) -> None:
            module = Path(self.get_ext_fullpath("cggm_ops._C"))
            reason = module.with_name("_C.failed")  # cggm_ops/backend.py reads it
            reason.unlink(missing_ok=True)
            compiler = self.compiler  # the option; a run replaces it by an object
            try:
                super().run()
            except Exception as error:  # of the compiler, of ninja, or of torch's checks of them
                if os.environ.get("CGGM_REQUIRE_EXTENSION") == "1":
                    raise
                module.unlink(missing_ok=True)  # an older build does not fit these sources
                module.parent.mkdir(parents=True, exist_ok=True)
                cause = f"{type(error).__name__}: {error}".partition("\n")[0]
                if any(name.endswith(".cu") for name in self.extensions[0].sources):
                    print(f"cggm: the CUDA kernels could not be built ({error}): building those for the CPU.")
                    vars(self.extensions[0]).update(
                        vars(kernels(None))
                    )  # setuptools has added names of its own
                    self.compiler = compiler
                    self.run()
                    cause = f"{cause}; {reason.read_text()}" if reason.exists() else cause
                else:
                    print(
                        f"cggm: the compiled kernels could not be built ({error}): installing without them."
                    )
                reason.write_text(cause)

    return BuildOrExplain


def why_not() -> str | None:
    """Say what is missing for an extension; None if nothing is."""
    if os.environ.get("CGGM_PURE_PYTHON") == "1":
        return "CGGM_PURE_PYTHON=1 asked for none"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) found"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        return f"no {headers} (Debian's python3-dev) found"
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "no torch found at build time (pip install torch, then --no-build-isolation)"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        return f"they need torch {'.'.join(map(str, OLDEST_TORCH))} or later when they are built, found {version}"
    return None


def extension() -> dict:
    """Return the keyword arguments of `setup` that build the extension; none where something is missing."""
    missing = why_not()
    if missing:
        print(f"cggm: installing without compiled kernels: {missing}.")
        return {}
    import torch
    from torch.utils import cpp_extension

    return {
        "ext_modules": [kernels(cuda_archs(torch))],
        "cmdclass": {"build_ext": tolerant(cpp_extension.BuildExtension)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def kernels(archs: str | None) -> setuptools.Extension:
    """Return the extension, with CUDA kernels for these architectures if there are any."""
    from torch.utils import cpp_extension

    define = [*STABLE_ABI]
    compile_args = {
        "cxx": ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi", *define]
    }
    options = {"libraries": [], "library_dirs": []}
    files = sources("csrc", "*.cpp", "cpu/*.cpp")
    if archs:
        home = cuda_home()
        cpp_extension.CUDA_HOME = home
        files += sources("csrc", "cuda/*.cu", "cuda/*.cpp")
        gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs.split(";")]
        # Other devices compile the intermediate code of the first architecture when they load it.
        first = archs.split(";")[0]
        gencode.append(f"-gencode=arch=compute_{first},code=compute_{first}")
        compile_args["cxx"] += [f'-DCGGM_CUDA_ARCHS="{archs}"', f"-I{home}/include"]
        compile_args["nvcc"] = ["-O3", "-std=c++17", *define, *gencode]
        options = {
            "libraries": ["cudart_static", "rt", "dl"],
            "library_dirs": [f"{home}/lib64"],
            # Brings libtorch_cuda with it where torch has one. The only symbol needed from there is a weak one, so
            # the linker would drop the library.
            "extra_link_args": ["-Wl,--no-as-needed", "-ltorch"],
        }
    return cpp_extension.CppExtension(
        "cggm_ops._C",
        files,
        optional=True,
        py_limited_api=True,  # one file for every Python from 3.10 on
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc", "**/*.h", "**/*.cuh"),
        extra_compile_args=compile_args,
        **options,
    )


setup(
    packages=[*find_packages(include=["cggm_ops*"]), *find_packages("python")],
    package_dir={"": "python", "cggm_ops": "cggm_ops"},
    package_data={
        "cggm": ["py.typed"],
        "cggm_ops": ["py.typed"],
        "cggm.experiments.datasets": ["data/*.npz", "data/*.txt"],
    },
    exclude_package_data={
        "cggm.experiments.datasets": ["data/make_*.py"]
    },  # how the data were made: not for users
    **extension(),
)
