"""Pages and the workflows for GitHub name only targets that the Makefile has."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_every_target_that_a_page_names_is_there():
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"test", "lint", "oldest", "wheel"} <= named <= TARGETS


def commands(job):
    """The commands of a job's steps, with each value of its matrix put in."""
    lines = [step["run"] for step in job["steps"] if "run" in step]
    for name, values in job.get("strategy", {}).get("matrix", {}).items():
        lines = [line.replace(f"${{{{ matrix.{name} }}}}", value) for line in lines for value in values]
    return lines


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_only_what_a_developer_runs(path):
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        assert commands(job)
        for line in commands(job):
            assert line == ".ci/run" or line.removeprefix("make ") in TARGETS, line
