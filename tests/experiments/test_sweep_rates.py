"""The sweep over learning rates: what it trains, and that it goes on where it was."""

from test_compare import build_balanced

from cggm.experiments import sweep_rates
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
        sweep_rates.sweep(store, {"toy": build_balanced}, optimizers=["sgd"], seeds=[0, 1])
    own = build_balanced().learning_rates["sgd"]
    assert trained == [("sgd", [factor * own]) for factor in sweep_rates.FACTORS for _ in range(2)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]
    assert lines[0].startswith(f"| toy, sgd {0.25 * own:g} | ")
    assert lines[0].count("|") == len(sweep_rates.METHODS_SWEPT) + 2
