"""Everything that needs a GPU, in one command without a network: `make gpu`.

Builds the extension in place, checks every kernel against the reference, runs compute-sanitizer where there is one,
shows that no operator waits for the GPU and that each can be captured in a CUDA graph, then measures, and writes
benchmarks/results/<name of the GPU>.json. With `--device cpu` all of it runs that needs no GPU, on small inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]
CHECKS = ROOT / "tests" / "ops" / "kernel_checks.py"


def build() -> None:
    """Build in place with what is installed."""
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, check=True, timeout=300)


def check(device: str, backend: str, *options: str, tool: tuple[str, ...] = ()) -> str:
    """Run the checks of all kernels in a process of their own; return their last line."""
    command = [*tool, sys.executable, str(CHECKS), "--device", device, "--backend", backend, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result.stdout.strip().splitlines()[-1]


def calls(device: str) -> dict[str, Callable[[], Any]]:
    """One call of every operator, on tensors that stay."""
    import torch

    import cggm_ops

    sets = [[torch.randn(size, device=device) for size in (5, 8192, 20_001)] for _ in range(4)]
    torch._foreach_abs_(sets[3])
    owner, coefficients = [0, 1, -1], torch.tensor([0.9, 1.1], device=device)
    head = [torch.randn(3001, device=device) for _ in range(3)]
    weights = torch.full((3, 2), 0.5, device=device)
    steps = [torch.zeros((), device=device) for _ in range(3)]
    found_inf = torch.zeros(1, device=device)
    modulation = cggm_ops.Modulation(
        owner=owner, grad_scale=coefficients, update_scale=coefficients, found_inf=found_inf
    )
    adam, sgd = cggm_ops.AdamSettings(lr=0.01), cggm_ops.SGDSettings(lr=0.01, momentum=0.9)
    states = {"exp_avgs": sets[2], "exp_avg_sqs": sets[3], "steps": steps}
    return {
        "scale_": lambda: cggm_ops.scale_(sets[0], owner, coefficients),
        "batched_cosine": lambda: cggm_ops.batched_cosine(head[0], head[1:]),
        "modulate_": lambda: cggm_ops.modulate_(sets[0], owner, coefficients, head[0], head[1:]),
        "segment_gram": lambda: cggm_ops.segment_gram(sets[:2]),
        "segment_combine_": lambda: cggm_ops.segment_combine_(sets[:2], weights),
        "adamw_": lambda: cggm_ops.adamw_(*sets[:2], **states, settings=adam, modulation=modulation),
        "sgd_": lambda: cggm_ops.sgd_(
            *sets[:2], momentum_buffers=sets[2], settings=sgd, modulation=modulation
        ),
        "all": lambda: [tensor.clone() for row in (*sets, steps) for tensor in row],
    }


def check_no_waiting_and_capture() -> dict[str, int]:
    """No operator waits for the GPU; captured and replayed, all give what they give when called. Kernels per call."""
    import torch

    launches = {}
    torch.manual_seed(0)
    called = calls("cuda")
    torch.manual_seed(0)
    captured = calls("cuda")
    names = [name for name in called if name != "all"]
    for name in names:  # tables and libraries that are made once
        called[name]()
        captured[name]()
    torch.cuda.synchronize()
    for name in names:
        torch.cuda.set_sync_debug_mode("error")
        called[name]()
        torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured[name]()
        graph.replay()
        called[name]()
        graph.replay()
        for expected, found in zip(called["all"](), captured["all"](), strict=True):
            if not torch.equal(expected, found):
                raise SystemExit(f"{name}: the replay of a CUDA graph differs from the calls")
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            called[name]()
            torch.cuda.synchronize()
        graph.replay()
        kernels = [e for e in profile.events() if "kernel" in e.name and e.device_type.name == "CUDA"]
        launches[name] = len(kernels)
    return launches


def measure(device: str, elements: int, backends: list[str]) -> dict[str, Any]:
    """Versions of everything and all figures."""
    import torch
    from gpu_figures import measure as figures

    import cggm_ops

    triton = __import__("triton").__version__ if "triton" in backends else None
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "triton": triton, "python": sys.version.split()[0]}
    return {"device": name, **versions, "build": cggm_ops.build_info(), **figures(elements, device, backends)}


def main() -> None:
    """Parse the command line and run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--elements", type=int, help="elements of a measurement (default: 2**27 on CUDA)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    on_gpu, start = arguments.device == "cuda", time.perf_counter()
    backends = ["compiled", "triton"] if on_gpu else ["compiled"]
    report: dict[str, Any] = {"checks": {}, "seconds": {}}

    def stage(name: str, run: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = run()
        report["seconds"][name] = round(time.perf_counter() - begin, 1)
        print(
            f"{name}: {result if isinstance(result, (str, dict)) and name != 'figures' else 'done'}",
            flush=True,
        )
        return result

    if on_gpu:
        stage("build", build)
    for backend in backends:
        report["checks"][backend] = stage(
            f"checks of {backend}", lambda backend=backend: check(arguments.device, backend)
        )
    sanitizer = shutil.which("compute-sanitizer")
    if on_gpu and sanitizer:
        for kind, which in (("memcheck", ("--without", "many")), ("racecheck", ("--only", "modulate"))):
            tool = (sanitizer, "--tool", kind, "--error-exitcode", "9")
            sanitized = lambda tool=tool, which=which: check("cuda", "compiled", *which, tool=tool)  # noqa: E731
            report["checks"][kind] = stage(kind, sanitized)
    if on_gpu:
        report["kernels per call"] = stage("no waiting, capture", check_no_waiting_and_capture)
    elements = arguments.elements or (2**27 if on_gpu else 400_000)
    report.update(stage("figures", lambda: measure(arguments.device, elements, backends)))
    report["seconds"]["all"] = round(time.perf_counter() - start, 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{report['device'].replace(' ', '_')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']['all']} s; written to {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
