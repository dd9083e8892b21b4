"""Collects bench_*.py and prints a table of all comparisons."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def pytest_collect_file(file_path, parent):
    # pytest itself collects a file that is named on the command line.
    named = parent.session.isinitpath(file_path)
    if file_path.suffix == ".py" and file_path.name.startswith("bench_") and not named:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [(bench.name, bench.extra_info) for bench in session.benchmarks] if session else []
    rows = [(name, info) for name, info in rows if "ratio" in info]
    if not rows:
        return
    terminalreporter.section("compared side by side (times as long as ours)")
    for name, info in rows:
        bound = ""
        if "gb_per_s" in info:
            bound = f"{info['gb_per_s']:7.1f} GB/s {info['percent_of_bound']:4.0f}% of bound"
        ratios = "  ".join(f"{other} {ratio:.2f}x" for other, ratio in info["ratio"].items())
        terminalreporter.write_line(f"{name:52s} {info['ms']['ours']:9.4f} ms {bound:32s} {ratios}")
