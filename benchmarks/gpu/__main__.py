"""Everything that needs a GPU, in one command that needs no network: `make gpu`.

It builds the extension in place, checks every kernel against the reference, runs the tests that need a GPU and, if
installed, compute-sanitizer. It shows that nothing waits for the GPU and that everything can be captured in a CUDA
graph. It measures operators, whole steps and host times, and writes benchmarks/results/<name of the GPU>.json. A time
budget is divided over the sections. Each section runs in its own process, so that one that fails or hangs does not
stop the others. The JSON lists what failed and what was skipped; the exit status is 1 if anything failed. With
`--device cpu` the parts run that need no GPU, on small inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if not __package__:  # `python benchmarks/gpu` puts this folder on the path instead of its parent
    sys.path[0] = str(HERE.parent)

from gpu.budget import Failed, Report, Section, Skipped, TimedOut, run_command, run_sections  # noqa: E402

CHECKS = ROOT / "tests" / "ops" / "kernel_checks.py"
GPU_TESTS = ("tests/policies/test_gpu_step.py",)  # all tests that are skipped without a GPU
SECONDS = 450.0  # of eight minutes; the rest is for starting, and for stopping sections that overrun

# Optional packages and programs, and what happens without them.
PACKAGES = {
    "setuptools": "the extension cannot be built",
    "ninja": "the build compiles one file at a time",
    "triton": "its kernels are neither checked nor measured",
    "pytest": "the tests that need a GPU are not run",
    "numpy": "torch prints a warning; nothing else changes",
}
PROGRAMS = {
    "nvcc": "the CUDA kernels are not built (unless a toolkit is in CUDA_HOME or /usr/local/cuda)",
    "c++": "the extension cannot be built",
    "compute-sanitizer": "memory accesses and races are not checked",
}


def missing() -> dict[str, str]:
    """Return what is not installed, and the consequence."""
    packages = {name: why for name, why in PACKAGES.items() if importlib.util.find_spec(name) is None}
    return packages | {name: why for name, why in PROGRAMS.items() if shutil.which(name) is None}


def environment() -> dict[str, str]:
    """Return environment variables that make programs import the packages from this checkout."""
    paths = [str(ROOT), str(ROOT / "python"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: list[str], seconds: float, *, show: bool = False) -> str:
    """Run a program of this project in the project's folder."""
    return run_command(command, seconds, show=show, cwd=ROOT, env=environment())


def build(seconds: float) -> Any:
    """Build the extension in place; return its build information."""
    if importlib.util.find_spec("setuptools") is None:
        raise Failed("setuptools is not installed: the extension cannot be built")
    run([sys.executable, "setup.py", "build_ext", "--inplace"], seconds)
    program = "import cggm_ops, json; print(json.dumps(cggm_ops.build_info()))"
    info = json.loads(run([sys.executable, "-c", program], 60).splitlines()[-1])
    if info is None or info["cuda"] is None:
        raise Failed(f"built without CUDA kernels, no nvcc was found: {info}", info)
    return info


def check(device: str, backend: str, seconds: float, *options: str, tool: tuple[str, ...] = ()) -> str:
    """Run the checks of all kernels; return their last line."""
    command = [*tool, sys.executable, str(CHECKS), "--device", device, "--backend", backend, *options]
    return run(command, seconds).strip().splitlines()[-1]


def sanitize(kind: str, options: tuple[str, ...], seconds: float) -> str:
    """Run the checks of the CUDA kernels under one of compute-sanitizer's tools, if that works on this machine."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not installed")
    begin = time.monotonic()
    try:  # on some virtual machines it cannot attach to a program
        tool = [sanitizer, "--tool", kind, "--error-exitcode", "9"]
        said = run([sanitizer, "--help"], seconds)
        # Leave out torch's own kernels, which are many more. The option's name depends on the version.
        narrowing = [name for name in ("--kernel-regex", "--kernel-name") if f"{name} " in said]
        tool += [narrowing[0], "kns=cggm"] if narrowing else []
        run([*tool, sys.executable, "-c", "import torch; torch.ones(9, device='cuda').sum().item()"], seconds)
    except Failed as error:
        raise Skipped(f"compute-sanitizer does not work here, not even with torch alone: {error}") from error
    left = seconds - (time.monotonic() - begin)
    try:
        return check("cuda", "compiled", max(left, 1.0), *options, tool=tuple(tool))
    except TimedOut as error:
        raise Skipped(f"found nothing before the time was over: {error}") from error


def run_tests(seconds: float) -> str:
    """Run the tests that need a GPU; return pytest's last line."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped(
            "pytest is not installed: install it, or run `pytest tests/policies/test_gpu_step.py` elsewhere"
        )
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *GPU_TESTS]
    last = run(command, seconds).strip().splitlines()[-1]
    if "passed" not in last or "skipped" in last:
        raise Failed(f"tests that need a GPU did not run on one: {last}")
    return last


def measure(section: str, device: str, small: bool, seconds: float) -> Any:
    """Run one section of measure.py; return its figures, failures and omissions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-m", "gpu.measure", section, "--device", device]
        # It starts nothing new when 85 % of its time is over, and is stopped when all of it is.
        command += ["--seconds", f"{0.85 * seconds - 5:.1f}", "--out", str(path), *(["--small"] * small)]
        error = None
        try:
            run(command, seconds, show=True)
        except Failed as found:
            error = found
        report = json.loads(path.read_text()) if path.exists() else {}
    if error is not None:
        raise Failed("; ".join(report.get("failed", {})) or str(error), report) from error
    return report


def sections(device: str, small: bool) -> list[Section]:
    """Return all sections with their shares of the time, the most important ones first."""
    on_gpu = device == "cuda"
    triton = on_gpu and importlib.util.find_spec("triton") is not None
    found = [Section("build", 150, build)] if on_gpu else []
    found += [Section("checks of compiled", 40, partial(check, device, "compiled"))]
    found += [Section("checks of triton", 160, partial(check, device, "triton"))] if triton else []
    found += [Section("tests", 40, run_tests)] if on_gpu else []
    measured = {**({"capture": 25} if on_gpu else {}), "operators": 40, "steps": 70, "host time": 40}
    for name, share in measured.items():
        found.append(Section(name, share, partial(measure, name, device, small)))
    if on_gpu:
        found.append(Section("memcheck", 40, partial(sanitize, "memcheck", ("--without", "many"))))
        found.append(Section("racecheck", 30, partial(sanitize, "racecheck", ("--only", "modulate"))))
    return [*found, Section("sweep", 80, partial(measure, "sweep", device, small))]


def about(device: str) -> dict[str, Any]:
    """Return names and versions; exit if torch or the GPU is missing."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("torch is not installed beside this Python: make gpu PYTHON=<one that has it>")
    program = (
        "import torch, json, sys; gpu = sys.argv[1] == 'cuda' and torch.cuda.is_available();"
        "print(json.dumps({'device': torch.cuda.get_device_name() if gpu else 'cpu',"
        "'capability': torch.cuda.get_device_capability() if gpu else None,"
        "'memory_gb': torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else None,"
        "'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': sys.version.split()[0]}))"
    )
    found = json.loads(run([sys.executable, "-c", program, device], 90).splitlines()[-1])
    if device == "cuda" and found["device"] == "cpu":
        raise SystemExit(f"torch {found['torch']} sees no NVIDIA GPU here (its CUDA: {found['cuda']})")
    return found


def main() -> int:
    """Parse the command line, run everything, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="small inputs (always on the CPU)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time budget for everything")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    arguments = parser.parse_args()
    begin = time.monotonic()
    head = {**about(arguments.device), "missing": missing()}
    for name, why in head["missing"].items():
        print(f"{name} is not installed: {why}", flush=True)
    report = Report(arguments.out / (re.sub(r"[^\w.-]+", "_", head["device"]) + ".json"), head)
    todo = sections(arguments.device, arguments.small or arguments.device == "cpu")
    run_sections(todo, report, seconds=arguments.seconds - (time.monotonic() - begin))
    print(f"{report.seconds['all']} s; written to {os.path.relpath(report.path)}")
    for name, error in report.failed.items():
        print(f"FAILED {name}: {error.splitlines()[0]}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
