import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cggm import cli
from cggm.experiments.datasets.registry import DATASETS, FROM_FILES
from cggm.experiments.training.methods import GROUPS, METHODS

pytest.importorskip("tyro")


def test_demo_writes_its_files(tmp_path, capsys):
    arguments = ["--seeds", "1", "--first-seed", "4", "--epochs", "1", "--methods", "joint", "cggm"]
    arguments += ["--optimizers", "sgd", "--out", str(tmp_path)]
    assert cli.main(["demo", *arguments]) == 0
    runs = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert [(run["method"], run["optimizer"], run["seed"]) for run in runs] == [
        ("joint", "sgd", 4),
        ("cggm", "sgd", 4),
    ]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "joint" in shown
    assert "1/1" in shown or "0/1" in shown


def test_the_live_view_of_the_demo_changes_no_result_and_needs_a_terminal(tmp_path):
    from rich.console import Console

    from cggm.experiments.demo import Demo, run_demo

    shown = {}
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=100, height=60)
        out = tmp_path / str(terminal)
        demo = Demo(seeds=1, epochs=1, methods=("joint", "cggm"), optimizers=("sgd",), out=out, live=True)
        with console.capture() as drawn:
            assert run_demo(demo, console)
        runs = json.loads((out / "demo.json").read_text())["runs"]
        shown[terminal] = drawn.get(), [(run["method"], run["accuracy"], run["probe"]) for run in runs]
    assert shown[True][1] == shown[False][1]
    assert "job 1 of 1, sgd, seed 0: cggm, step 10" in shown[True][0]
    assert "coefficients/audio" in shown[True][0]
    assert "coefficients/audio" not in shown[False][0]


def test_a_live_view_without_a_policy_is_refused_before_the_work(tmp_path, capsys):
    assert cli.main(["demo", "--live", "--methods", "joint", "--out", str(tmp_path)]) == 2
    assert "add 'default'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_info_tells_versions_and_backend(capsys):
    import torch

    import cggm_ops

    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert cggm_ops.backend() in shown


def test_info_says_why_nothing_is_compiled(monkeypatch, capsys):
    import cggm_ops

    monkeypatch.setattr(cggm_ops, "build_info", lambda: None)
    monkeypatch.setattr(cggm_ops, "missing_reason", lambda: "because")
    assert cli.main(["info"]) == 0
    assert "because" in capsys.readouterr().out


WITHOUT_EXTRAS = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in {extra} else find(name, *more)
sys.modules.update(dict.fromkeys({extra}))  # importing them fails
from cggm.cli import main
sys.exit(main())
"""


def test_info_needs_no_extra():
    script = WITHOUT_EXTRAS.format(
        extra=[name for name in cli.EXTRA if name != "numpy"]
    )  # torch looks for numpy
    shown, refused = (
        subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True)
        for command in ("info", "demo")
    )
    assert shown.returncode == 0, shown.stderr
    assert "operators" in shown.stdout
    assert refused.returncode == 1
    assert refused.stderr.startswith("cggm needs matplotlib, rich, scipy, sklearn, tyro: ")


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_help_lists_every_name(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = "".join(character for character in capsys.readouterr().out if character not in "│ \n")
    assert "Anyof" + ",".join([*METHODS, *GROUPS]) + "." in shown
    if command == "compare":
        assert "Anyof" + ",".join(DATASETS) + ";with--dataalso" + ",".join(FROM_FILES) + "." in shown


def test_a_missing_extra_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "EXTRA", ("rich", "not_a_module_at_all"))
    assert cli.main(["demo"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "not_a_module_at_all" in message
    assert 'pip install "cggm[demo]"' in message


def test_wrong_arguments_get_one_line(capsys, tmp_path):
    assert cli.main(["demo", "--methods", "cgm", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "did you mean 'cggm'" in message
    assert not list(tmp_path.iterdir())


def start_demo(out):
    """A long demo in a process of its own, once its first results are there."""
    command = [sys.executable, "-m", "cggm", "demo", "--seeds", "40", "--epochs", "2", "--methods", "joint"]
    demo = subprocess.Popen(
        [*command, "--optimizers", "sgd", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: (out / "demo.json").exists() or demo.poll() is not None, seconds=60)
    return demo


def wait_until(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent differently there")
@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGINT), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM)]
)
def test_an_interrupt_keeps_what_is_done(send, number, tmp_path):
    demo = start_demo(tmp_path)
    send(demo.pid, number)  # its process group has its number
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "Stopped: " in output
    assert "Traceback" not in output
    runs = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert 0 < len(runs) < 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "demo.png"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the workers")
def test_workers_end_with_a_main_process_that_was_killed(tmp_path):
    demo = start_demo(tmp_path)
    workers = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    demo.kill()
    demo.wait()
    assert workers
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=20)
    left = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    for worker in left:  # of a failing test only: they are this test's own
        os.kill(int(worker), signal.SIGKILL)
    assert not left
    assert json.loads((tmp_path / "demo.json").read_text())["runs"]
