"""`--experiment module:function` is found in the current folder, by worker processes too; `sys.path` keeps no trace."""

import json
import os
import subprocess
import sys

import pytest

from cggm.experiments.datasets.registry import find_experiment

MINE = """
from cggm.experiments.experiment import Experiment
from parts import TwoEncoders, load
from torch import nn

def build():
    return Experiment(name="mine", encoders={"left": "left", "right": "right"}, head="head", load=load,
                      model=TwoEncoders, classifier=lambda: nn.Linear(4, 2), batch_size=10, epochs=1)
"""
SCRIPT = """
import sys
from cggm import cli

if __name__ == "__main__":
    before = list(sys.path)
    arguments = ["compare", "--experiment", "mine:build", "--methods", "joint", "--optimizers", "sgd", "--seeds", "1"]
    status = cli.main([*arguments, "--processes", "1", "--out", "out"])
    assert sys.path == before, sys.path
    sys.exit(status)
"""


def test_ones_own_experiment_leaves_sys_path_and_runs_in_workers(tmp_path):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    elsewhere.mkdir()
    (work / "mine.py").write_text(MINE)
    (work / "parts.py").write_text("from test_compare import TwoEncoders, load\n")
    (elsewhere / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(elsewhere / "script.py")]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((work / "out" / "compare.json").read_text())["runs"][0]["dataset"] == "mine"


def test_a_failed_import_leaves_sys_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_experiment.py").write_text(
        "import sys\nsys.path.append('kept')\nimport no_such_module\n"
    )
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    with pytest.raises(ValueError, match="no_such_module"):
        find_experiment("broken_experiment:build")
    assert sys.path == [*before, "kept"]
