"""What `make gpu` does around its measurements: the budget, the report, failures, what is missing."""

import json
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu.__main__ as gpu  # noqa: E402
from gpu.budget import Entries, Failed, Report, Section, Skipped, run_command, run_sections  # noqa: E402


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def take(self, seconds, result, given):
        self.now += seconds
        return [given, result]


def report_of(tmp_path, *sections, seconds):
    report = Report(tmp_path / "results" / "gpu.json", {"device": "a GPU"})
    run_sections([Section(*section) for section in sections], report, seconds=seconds, clock=report_of.clock)
    return json.loads(report.path.read_text())


@pytest.fixture
def clock():
    report_of.clock = Clock()
    return report_of.clock


def test_time_is_divided_by_shares_and_what_is_over_goes_to_the_next(tmp_path, clock):
    found = report_of(
        tmp_path,
        ("a", 50, partial(clock.take, 10, "one")),  # takes 10 of its 50
        ("b", 25, partial(clock.take, 100, "two")),  # has half of the 90 left and overruns
        ("c", 25, partial(clock.take, 1, "three")),
        seconds=100,
    )
    assert found["device"] == "a GPU"
    assert found["results"] == {"a": [50, "one"], "b": [45, "two"]}
    assert set(found["skipped"]) == {"c"}
    assert "no time" in found["skipped"]["c"]
    assert found["seconds"] == {"a": 10, "b": 100, "c": 0, "all": 110}


def test_a_failure_is_recorded_and_the_other_sections_run(tmp_path, clock):
    def fail(error, seconds):
        raise error

    found = report_of(
        tmp_path,
        ("broken", 1, partial(fail, ZeroDivisionError("a reason"))),
        ("half", 1, partial(fail, Failed("stopped in the middle", {"a figure": 3}))),
        ("absent", 1, partial(fail, Skipped("it is not installed"))),
        ("good", 1, lambda seconds: "fine"),
        seconds=50,
    )
    assert found["failed"] == {
        "broken": "ZeroDivisionError: a reason",
        "half": "Failed: stopped in the middle",
    }
    assert found["skipped"] == {"absent": "it is not installed"}
    assert found["results"] == {"half": {"a figure": 3}, "good": "fine"}


def test_the_report_is_on_disk_before_the_next_section_begins(tmp_path):
    report = Report(tmp_path / "gpu.json")
    seen = []
    sections = [
        Section("a", 1, lambda seconds: "done"),
        Section("b", 1, lambda seconds: seen.append(json.loads(report.path.read_text())["results"])),
    ]
    run_sections(sections, report, seconds=60)
    assert seen == [{"a": "done"}]


def test_entries_fail_and_are_skipped_one_by_one(tmp_path):
    clock = Clock()
    entries = Entries(10, tmp_path / "found.json", clock)

    def skip():
        raise Skipped("no room")

    assert entries.add("good", lambda: 4) == 4
    assert entries.add("broken", lambda: [][1]) is None
    assert entries.add("large", skip) is None
    clock.now += 11
    entries.add("late", lambda: pytest.fail("it must not be begun"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == entries.report
    assert found["figures"] == {"good": 4}
    assert found["failed"] == {"broken": "IndexError: list index out of range"}
    assert found["skipped"] == {"large": "no room", "late": "no time left"}


def test_a_command_ends_with_all_that_it_started(tmp_path):
    marker = tmp_path / "marker"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    program = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    with pytest.raises(Failed, match="took more than 1 s"):
        run_command([sys.executable, "-c", program], 1)
    time.sleep(3)
    assert not marker.exists()


def test_a_command_that_fails_says_what_it_printed():
    program = "import sys; print('on the way'); sys.exit('at the end')"
    with pytest.raises(Failed, match=r"(?s)exit status 1.*on the way.*at the end"):
        run_command([sys.executable, "-c", program], 60)
    assert run_command([sys.executable, "-c", "print(5)"], 60) == "5\n"


def test_every_test_that_needs_a_gpu_is_run():
    """And so are all checks of kernels, which the program runs by itself."""
    needing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^(pytestmark = |@)pytest.mark.skipif\(not torch.cuda", path.read_text(), re.MULTILINE)
    }
    assert needing == set(gpu.GPU_TESTS)
    names = [section.name for section in gpu.sections("cuda", small=False)]
    assert {"build", "checks of compiled", "tests", "capture", "memcheck", "sweep"} <= set(names)


def test_tests_that_ran_on_no_gpu_count_as_failed():
    if torch.cuda.is_available():
        pytest.skip("this needs a machine without one")
    with pytest.raises(Failed, match="did not run on one"):
        gpu.run_tests(120)


def test_the_whole_program_keeps_to_its_time_and_writes_its_report(tmp_path):
    """Far too little time for all of it: something is skipped, nothing fails, and the JSON says so."""
    program = [sys.executable, str(ROOT / "benchmarks" / "gpu"), "--device", "cpu"]
    begin = time.monotonic()
    result = subprocess.run(
        [*program, "--seconds", "6", "--out", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert time.monotonic() - begin < 40
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert result.returncode == (1 if found["failed"] else 0), result.stdout + result.stderr
    done = set(found["results"]) | set(found["failed"]) | set(found["skipped"])
    assert done == {section.name for section in gpu.sections("cpu", small=True)}
    skipped = [r for r in found["results"].values() if isinstance(r, dict) and r.get("skipped")]
    assert found["skipped"] or found["failed"] or skipped
    assert found["torch"] == torch.__version__


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert {"triton", "pytest", "ninja", "nvcc", "compute-sanitizer"} <= set(gpu.missing())
    with pytest.raises(SystemExit, match="torch is not installed"):
        gpu.about("cuda")
    with pytest.raises(Skipped, match="pytest is not installed"):
        gpu.run_tests(10)
    with pytest.raises(Skipped, match="not installed"):
        gpu.sanitize("memcheck", (), 10)
    with pytest.raises(Failed, match="setuptools"):
        gpu.build(10)


def test_a_machine_without_a_gpu_is_told_so():
    if torch.cuda.is_available():
        pytest.skip("this needs a machine without one")
    with pytest.raises(SystemExit, match="sees no NVIDIA GPU"):
        gpu.about("cuda")
