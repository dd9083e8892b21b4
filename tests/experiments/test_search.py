"""The search for the default method, end to end on a toy, and that a stopped one goes on where it was."""

import dataclasses
import json

import pytest
from test_compare import build_balanced

from cggm.experiments import search_default
from cggm.experiments.training import loop, store
from cggm.experiments.training.store import Store


def short():
    return dataclasses.replace(build_balanced(), epochs=1)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(search_default, "SETS", ("toy",))
    monkeypatch.setattr(search_default, "OPTIMIZERS", ("sgd",))
    monkeypatch.setattr(search_default, "DATASETS", {"toy": short})
    names = ("unimodal", "norm-equalization", "dgl + dropout .35")
    candidates = {name: search_default.CANDIDATES[name] for name in names}
    monkeypatch.setattr(search_default, "CANDIDATES", candidates)
    monkeypatch.setattr(store, "execute", lambda jobs, **_: map(loop.run_job, jobs))  # in this process


def test_the_search_tunes_chooses_and_confirms(toy, tmp_path, capsys):
    path = tmp_path / "search.jsonl"
    search_default.search(Store(path), seeds=(1, 2, 2), finalists=2, processes=1)
    printed = capsys.readouterr().out
    choice = printed.split("The choice: ")[1].split(".")[0]
    confirmed = printed.split("Test accuracy on seeds 1000-1001:")[1]
    assert printed.startswith("Tuned on seeds 0-0;")
    assert sum(line.endswith("<-") for line in confirmed.splitlines()) == 1
    assert next(line for line in confirmed.splitlines() if line.endswith("<-")).split()[0] in choice
    for rival in ("joint ", "mmpareto", "joint, rates"):
        assert rival in confirmed

    written = path.read_text()
    assert {json.loads(line)["job"]["seed"] for line in written.splitlines()} == {0, 1, 1000, 1001}
    search_default.search(Store(path), seeds=(1, 2, 2), finalists=2, processes=1)
    assert capsys.readouterr().out == printed
    assert path.read_text() == written
