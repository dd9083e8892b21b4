"""Output files of the commands: a kill or a full disk loses nothing and leaves no partial file."""

import errno
import json
import os
import stat
import subprocess
import sys

import pytest
from test_compare import job, make_run

from cggm import cli
from cggm.experiments import demo, output
from cggm.experiments.papers import command as papers
from cggm.experiments.reports import report
from cggm.experiments.training import store
from cggm.experiments.training.results import Outcome
from paper_files import write_mosi


def outcome(seed):
    return Outcome(job=job(seed=seed), runs=[make_run(seed=seed)])


@pytest.fixture
def full_disk(monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(output.os, "fsync", fsync)


def test_a_cut_off_line_is_cut_in_place(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    kept = store.Store(path)
    kept.add(outcome(0))
    whole, place = path.read_bytes(), path.stat().st_ino
    path.write_bytes(whole + b'{"job": "\xc3')  # killed within a character
    sizes = []
    monkeypatch.setattr(output.os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    again = store.Store(path)
    assert sizes == [len(whole)]
    assert (path.read_bytes(), path.stat().st_ino) == (whole, place)
    again.add(outcome(1))
    assert sizes == [len(whole), path.stat().st_size], "the line is on the disk when add returns"
    assert store.Store(path).find(job(seed=1)) is not None


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, full_disk):
    path = tmp_path / "runs.jsonl"
    kept = store.Store(path)
    kept.add(outcome(0))
    before = path.read_bytes()
    (tmp_path / "full").mkdir()
    full_disk()
    with pytest.raises(ValueError, match=r"out: .*runs.jsonl cannot be .* written: No space left on device"):
        output.append_line(path, "more")
    with pytest.raises(ValueError, match="No space left"):
        store.Store(tmp_path / "full" / "runs.jsonl").add(outcome(0))
    with pytest.raises(ValueError, match="No space left"):
        report.write_json(tmp_path / "full" / "runs.json", [outcome(0)])
    assert path.read_bytes() == before
    assert not list((tmp_path / "full").iterdir())


LIMITED = """
import resource, sys
from cggm import cli
from cggm.experiments.training import store
from test_compare import make_run
from cggm.experiments.training.results import Outcome

def execute(jobs, **options):
    for job in jobs:
        yield Outcome(job=job, runs=[make_run("joint", job.seed), make_run("unimodal", job.seed)])

store.execute = execute
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
arguments = ["compare", "--experiment", "test_compare:build", "--methods", "joint", "unimodal", "--optimizers", "sgd"]
sys.exit(cli.main([*arguments, "--seeds", "9", "--out", sys.argv[1]]))
"""


def test_a_comparison_on_a_full_disk_ends_with_one_line_and_keeps_what_it_has(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "compare.jsonl cannot be read or written: File too large" in ended.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"compare.jsonl", "compare.lock"}
    lines = (tmp_path / "compare.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 9
    assert [json.loads(line)["job"]["seed"] for line in lines] == list(range(len(lines)))


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"job": 1, "runs": 1, "alone": null}',
        b'{"job": 1, "runs": [{"a": 1}], "alone": null}',
        b'{"job": 1, "runs": [], "alone": 3}',
        b"\0" * 20,
    ],
)
def test_a_line_of_another_kind_is_refused_and_kept(line, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(line + b"\nrest")
    with pytest.raises(ValueError, match="line 1 is not a finished job"):
        store.Store(path)
    assert path.read_bytes() == line + b"\nrest"


def test_a_written_file_replaces_at_once_and_follows_no_link(tmp_path):
    path, victim = tmp_path / "runs.json", tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)
    names = []
    for _ in range(2):
        with output.replacing(path) as unfinished:
            names.append(unfinished.name)
            unfinished.write_text("new")
            assert stat.S_IMODE(unfinished.stat().st_mode) == stat.S_IMODE(victim.stat().st_mode)
    assert (path.read_text(), path.is_symlink(), victim.read_text()) == ("new", False, "mine")
    assert names[0] != names[1]
    with pytest.raises(UnicodeEncodeError), output.replacing(path) as unfinished:
        unfinished.write_text("half\ud800", encoding="utf-8")
    assert path.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("command", ["compare", "demo", "experiment"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(command, tmp_path, capsys, monkeypatch):

    for module, name in ((store, "execute"), (demo, "execute"), (papers, "run")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("in the way")
    more = ["mosi", "--data", str(write_mosi(tmp_path))] if command == "experiment" else []
    assert cli.main([command, *more, "--out", str(tmp_path / "file" / "folder")]) == 2
    message = capsys.readouterr().err
    assert "file/folder cannot be read or written: Not a directory" in message
    assert message.count("\n") == 1
