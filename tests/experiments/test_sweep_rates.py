"""The sweep over learning rates: what it trains, what it checks, and that it goes on where it was."""

import json
import sys

import pytest
from test_compare import build_balanced

from cggm.experiments import sweep_rates
from cggm.experiments.reports import rates
from cggm.experiments.reports.rate_checks import check
from cggm.experiments.reports.rates import RateRun, cells_of, read_runs, write_runs
from cggm.experiments.training import loop
from cggm.experiments.training.store import Store


def test_every_method_trains_at_three_rates_and_a_second_run_trains_nothing(tmp_path, monkeypatch, capsys):
    trained = []

    def here(jobs, **_):
        for job in jobs:
            trained.append((job.optimizer, sorted(set(job.learning_rates.values()))))
            yield loop.run_job(job)

    monkeypatch.setattr("cggm.experiments.training.store.execute", here)
    for _ in range(2):
        store = Store(tmp_path / "sweep.jsonl")
        found = sweep_rates.sweep(store, {"toy": build_balanced}, optimizers=["sgd"], seeds=[0, 1])
    own = build_balanced().learning_rates["sgd"]
    assert trained == [("sgd", [factor * own]) for factor in rates.FACTORS for _ in range(2)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == lines[5:]
    assert lines[2].startswith(f"| toy, sgd {0.25 * own:g} | ")
    assert lines[2].count("|") == len(sweep_rates.METHODS_SWEPT) + 2
    assert sorted(read_runs([tmp_path / "sweep.jsonl"])) == sorted(found)


def runs(gains, *, dataset="cub", optimizer="sgd", rate=0.03, joint=0.9, method="default"):
    """Joint runs and another method's, by the differences of its seeds."""
    common = (dataset, optimizer, rate)
    return [
        made
        for seed, gain in enumerate(gains)
        for made in (RateRun(*common, "joint", seed, joint), RateRun(*common, method, seed, joint + gain))
    ]


def test_a_collapse_is_a_seed_far_below_a_joint_run_that_works():
    cells = cells_of(
        runs([0.01, -0.11], joint=0.9)
        + runs(
            [-0.2, -0.2], rate=0.12, joint=0.4
        )  # joint training itself does not work: below (0.1 + 0.9) / 2
        + runs([-0.09, -0.09], rate=0.0075, joint=0.8)
    )
    assert check(cells, "default").collapses == ["cub, sgd 0.03, seed 1: 79.0, joint 90.0"]


def test_worse_is_corrected_for_the_number_of_cells():
    slightly = [-0.004, -0.006, -0.005, -0.001, -0.009]  # p = 0.02 alone
    assert len(check(cells_of(runs(slightly)), "default").worse) == 1
    many = [run for i in range(6) for run in runs(slightly, rate=0.01 * (i + 1))]
    assert check(cells_of(many), "default").worse == []
    surely = runs([-0.0100, -0.0101, -0.0102, -0.0101, -0.0100], rate=1.0)
    assert [text[:10] for text in check(cells_of(many + surely), "default").worse] == ["cub, sgd 1"]


def test_low_means_and_lost_gains_are_read_at_the_right_rates():
    wiki = [run for rate in (0.01, 0.04, 0.16) for run in runs([-0.01, -0.0], dataset="wiki", rate=rate)]
    found = check(cells_of(wiki + runs([-0.014, -0.010])), "default")
    assert [text[:14] for text in found.low_means] == ["wiki, sgd 0.04"]
    uci = [run for rate in (0.01, 0.04, 0.16) for run in runs([0.001, 0.002], dataset="uci", rate=rate)]
    assert [text[:13] for text in check(cells_of(uci), "default").lost_gains] == ["uci, sgd 0.04"]


def test_results_are_read_as_they_were_written_and_remade_by_a_command(tmp_path, monkeypatch, capsys):
    fixed = [run._replace(correct="0110" if run.method == "joint" else "0011") for run in runs([0.1, 0.2])]
    made = fixed + [run for rate in (0.1, 0.4, 1.6) for run in runs([0.01], dataset="uci", rate=rate)]
    path, again, figure = (tmp_path / name for name in ("rates.json", "again.json", "rates.png"))
    write_runs(path, cells_of(made), "a command")
    assert json.loads(path.read_text())["command"] == "a command"
    assert sorted(read_runs([path])) == sorted(made)
    arguments = ["--summary", str(path), "--results", str(again), "--plot", str(figure)]
    monkeypatch.setattr(sys, "argv", ["sweep_rates", *arguments])
    sweep_rates.main()
    assert sorted(read_runs([again])) == sorted(made)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "| default | 4 | 0 | 0 | 0 | 0 |" in capsys.readouterr().out


def test_files_that_hold_no_runs_or_contradict_each_other_are_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rates.json"
    path.write_text("[1]")
    monkeypatch.setattr(sys, "argv", ["sweep_rates", "--summary", str(path)])
    with pytest.raises(SystemExit) as caught:
        sweep_rates.main()
    assert caught.value.code == 2
    assert "is no file of a sweep" in capsys.readouterr().err
    first, second = runs([0.1]), runs([0.2])
    with pytest.raises(ValueError, match="two runs differ"):
        cells_of(first + second)
