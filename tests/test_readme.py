"""The README is a promise: its commands run, and what CI types is what it shows. Its code runs in test_docs.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cggm.experiments.datasets.registry import DATASETS
from cggm.tasks import find_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, code in BLOCKS
    if language == "bash"
    for line in code.splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_make_target_is_one_that_ci_or_this_test_runs(command):
    """CI types the same `make` commands on a clean checkout; the others are checked as far as `make -n` goes."""
    subprocess.run(
        [*shlex.split(command.split("#")[0]), "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    ci = (ROOT / ".ci" / "run").read_text()
    target = shlex.split(command)[1]
    assert target in ("bench", "gpu", "test-all", "clean") or f"make {target}" in ci


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cggm ")])
def test_a_cggm_command_runs(command, tmp_path):
    """As written, but for how long it runs: one seed, one epoch, two data sets, no tuning, into a temporary folder."""
    words = [word for word in shlex.split(command.split("#")[0]) if word != "--tune"]
    words[0:1] = [sys.executable, "-m", "cggm"]
    if "--dataset" in words:
        first = words.index("--dataset") + 1
        last = next(i for i in range(first, len(words)) if words[i].startswith("--")) - 1
        assert set(words[first : last + 1]) <= set(DATASETS)
        del words[first + 1 : last]
    if words[3] in ("demo", "compare"):
        for option in ("--seeds", "--epochs"):
            if option in words:
                words[words.index(option) + 1] = "1"
        words += [
            *([] if "--seeds" in words else ["--seeds", "1"]),
            *([] if "--epochs" in words else ["--epochs", "1"]),
        ]
        words += ["--out", str(tmp_path)] if "--out" not in words else []
    result = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "120"}
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_tasks_that_the_readme_names_are_there():
    (named,) = re.findall(r"^Tasks: (.*?), or an object", README, flags=re.MULTILINE | re.DOTALL)
    tasks = [find_task(name) for name in re.findall(r'"([\w-]+)"', named)]
    assert len(tasks) == 4


def test_the_examples_are_run_by_their_own_tests():
    examples = re.findall(r"examples/\w+\.py", README)
    assert examples
    tests = "".join(
        path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)
    )
    assert all(Path(example).stem in tests for example in examples)


def test_every_command_is_of_a_kind_that_is_checked():
    assert COMMANDS
    known = (
        "make ",
        "cggm ",
        "git clone",
        "cd ",
        "pip install",
        "torchrun ",
        "python examples/",
        "python -m ",
    )
    assert all(command.startswith(known) for command in COMMANDS if command), COMMANDS
