import functools
import json
import math
from importlib import resources

import numpy as np
import pytest
import torch
from torch import nn

from cggm import Encoder, cli
from cggm.experiments.compare import Comparison, run_compare
from cggm.experiments.datasets import registry, uci, watch
from cggm.experiments.experiment import Experiment, Split, Splits
from cggm.experiments.reports import comparison, report
from cggm.experiments.reports.intervals import Interval
from cggm.experiments.training import loop, store, tuning
from cggm.experiments.training.measuring import peak_bytes
from cggm.experiments.training.methods import METHODS, Method, choose_methods
from cggm.experiments.training.results import Alone, Job, Outcome, Run

DATA = resources.files("cggm.experiments.datasets") / "data"


def make_run(method="joint", seed=0, accuracy=0.5, **changes):
    values = {
        "dataset": "toy",
        "optimizer": "sgd",
        "method": method,
        "seed": seed,
        "learning_rate": 0.1,
        "accuracy": accuracy,
        "f1": accuracy,
        "validation": accuracy,
        "validation_loss": 1.0,
        "validation_rows": 1_000_000,
        "probe": {"a": 0.5},
        "seconds_per_step": 1.0,
        "peak_bytes": 1000,
    }
    return Run(**(values | changes))


class TwoEncoders(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.left(left), self.right(right)], 1).relu())


def load(seed):
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for rows in (40, 20, 20):
        left, right = torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)
        parts.append(Split((left, right), (left.sum(1) + right.sum(1) > 0).long()))
    return Splits(*parts)


def build():
    return Experiment(
        name="toy",
        encoders={"left": "left", "right": "right"},
        head="head",
        load=load,
        model=TwoEncoders,
        classifier=lambda: nn.Linear(4, 2),
        batch_size=10,
        epochs=2,
    )


def head_shaped():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def build_balanced():
    return Experiment(**{**vars(build()), "classifier": head_shaped})


# data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [("UCI_DIGITS_LICENSE.txt", "10.24432/C5HC70"), ("WATCH_LICENSE.txt", "arxiv.org/abs/1802.01489")],
)
def test_embedded_data_are_small_and_attributed(name, source):
    text = (DATA / name).read_text()
    assert source in text
    assert "What was changed" in text
    archive = {"UCI_DIGITS_LICENSE.txt": "uci_digits.npz", "WATCH_LICENSE.txt": "watch.npz"}[name]
    assert archive in text
    assert len((DATA / archive).read_bytes()) < 1_500_000


def test_the_six_views_are_complete():
    views, digits = uci.handwritten()
    assert {view: values.shape for view, values in views.items()} == {
        view: (1994, width) for view, width in uci.VIEWS.items()
    }
    assert np.bincount(digits).tolist() == [200, 200, 200, 199, 200, 199, 198, 199, 200, 199]
    for view in ("fou", "fac", "kar", "pix"):
        assert len(np.unique(views[view], axis=0)) == 1994, "no row may repeat another"
    assert all(np.isfinite(values).all() for values in views.values())
    np.testing.assert_allclose(
        views["mor"][0], [1, 0, 0, 133.15, 1.3117, 1620.2], rtol=1e-5
    )  # as in the CSV file


def test_uci_is_standardized_on_the_training_rows():
    data = uci.load(3)
    assert [len(part.target) for part in data] == [600, 300, 1000]
    for values in data.train.inputs:
        assert values.abs().max() <= 6
        assert values.mean(0).abs().max() < 0.1  # not 0: outliers were clipped
    assert data.test.inputs[0].mean(0).abs().max() > 1e-4, "the test rows must not have been looked at"
    rows = [{row.numpy().tobytes() for row in part.inputs[0]} for part in data]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]


@pytest.mark.parametrize("views", [("kar",), ("kar", "kar"), ("kar", "sound")])
def test_uci_needs_two_views_that_exist(views):
    with pytest.raises(ValueError, match="at least two of"):
        uci.build(*views)


@pytest.mark.parametrize("seed", [0, 5])
def test_nobody_is_trained_on_and_tested(seed):
    values, _, subjects = watch.windows()
    data = watch.load(seed)
    order = {v[:3].argsort(1, kind="stable").tobytes(): s for v, s in zip(values, subjects, strict=True)}
    people = [
        {order[window.numpy().argsort(1, kind="stable").tobytes()] for window in part.inputs[0]}
        for part in data
    ]
    assert [len(p) for p in people] == [5, 2, 3]
    assert people[0] | people[1] | people[2] == set(range(1, 11))
    assert sum(len(part.target) for part in data) == len(subjects)


def test_watch_windows_are_balanced_and_standardized():
    data = watch.load(1)
    assert set(data.train.target.tolist()) == set(range(7))
    for values in data.train.inputs:
        assert values.shape[1:] == (3, 32)
        torch.testing.assert_close(values.mean((0, 2)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std((0, 2)), torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_every_data_set_trains():
    torch.set_num_threads(1)
    for name in ("uci-six", "watch"):
        job = Job(
            build=registry.DATASETS[name],
            optimizer="adam",
            methods=choose_methods(["joint", "default"]),
            seed=0,
            epochs=3,
            only_accuracy=True,
        )
        chance = 0.1 if name == "uci-six" else 1 / 7
        for run in loop.run_job(job).runs:
            assert run.dataset == name
            assert run.accuracy > 2 * chance
            assert run.probe == {}
            assert run.peak_bytes is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avdigit", "did you mean 'avdigits'"),
        ("no_such_module:build", "No module named"),
        ("test_compare:nothing", "no attribute 'nothing'"),
        ("test_compare:head_shaped", "got Sequential"),
    ],
)
def test_experiments_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        registry.find_experiment(name)


# methods -------------------------------------------------------------------------------------------------------------


def test_every_method_trains_and_is_measured():
    torch.set_num_threads(1)
    job = Job(build=build_balanced, optimizer="sgd", methods=METHODS, seed=0, epochs=2)
    runs = loop.run_job(job).runs
    assert [run.method for run in runs] == list(METHODS)
    for run in runs:
        assert 0 <= run.validation <= 1
        assert run.peak_bytes > 0
    by_name = {run.method: run for run in runs}
    assert by_name["mmpareto"].peak_bytes > by_name["joint"].peak_bytes  # it holds a second gradient


def test_encoder_rates_are_learning_rates_of_their_own():
    model = TwoEncoders()
    wrapping = {"encoders": {"left": Encoder("left"), "right": Encoder("right")}, "head": "head"}
    started = loop.Training(
        model,
        Method(encoder_rates=(4.0, 1.0)),
        loop.OPTIMIZERS["sgd"],
        wrapping,
        learning_rate=0.1,
        seed=0,
    )
    rates = {p: group["lr"] for group in started.optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert (rates[model.left.weight], rates[model.right.weight], rates[model.head.weight]) == (0.4, 0.1, 0.1)
    with pytest.raises(ValueError, match="encoder_rates must be 2 numbers"):
        loop.Training(
            TwoEncoders(),
            Method(encoder_rates=(1.0,)),
            loop.OPTIMIZERS["sgd"],
            wrapping,
            learning_rate=0.1,
            seed=0,
        )


def test_peak_memory_counts_what_lives_together():
    layer = nn.Linear(1000, 1, bias=False)  # 4,000 bytes
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step(copies=0):
        kept = [torch.zeros(1000) for _ in range(copies)]
        layer(torch.ones(1, 1000)).sum().backward()
        sgd.step()
        del kept

    step()  # momentum, 4,000 bytes more
    plain = peak_bytes(layer, sgd, step)
    assert 12_000 <= plain < 24_000  # weight, momentum, gradient, input
    assert peak_bytes(layer, sgd, lambda: step(3)) == plain + 12_000


# tuning --------------------------------------------------------------------------------------------------------------


def fake_runs(accuracy, asked):
    """Runs whose validation accuracy is a function of (method, learning rate)."""

    def run(jobs):
        for job in jobs:
            rates = {m: job.learning_rates[m] for m in job.methods}
            asked.append((job.seed, dict(rates)))
            runs = [
                make_run(m, job.seed, learning_rate=r, validation=accuracy(m, r)) for m, r in rates.items()
            ]
            yield Outcome(job=job, runs=runs)

    return run


def test_the_grid_grows_until_the_best_is_inside():
    best = {"joint": 0.03 * 8, "unimodal": 0.03 / 2, "cggm": 0.03}
    asked = []
    run = fake_runs(lambda m, r: -abs(math.log2(r / best[m])), asked)
    methods = choose_methods(best)
    rates = tuning.tune([(build, methods)], optimizers=["sgd"], seeds=[7, 8], run=run)
    assert rates == {("toy", "sgd", m): pytest.approx(rate) for m, rate in best.items()}
    tried = {m: {r[m] for _, r in asked if m in r} for m in best}
    assert {m: len(rates) for m, rates in tried.items()} == {"joint": 6, "unimodal": 4, "cggm": 3}
    assert {seed for seed, _ in asked} == {7, 8}


def test_tuning_ends_where_nothing_tells_rates_apart():
    asked = []
    rates = tuning.tune(
        [(build, choose_methods(["joint"]))],
        optimizers=["sgd", "adam"],
        seeds=[0],
        run=fake_runs_of_any_optimizer(asked),
    )
    assert rates == {("toy", "sgd", "joint"): 0.03, ("toy", "adam", "joint"): 2e-3}
    assert len(asked) == 6


def fake_runs_of_any_optimizer(asked):
    def run(jobs):
        for job in jobs:
            asked.append(job)
            rate = job.learning_rates["joint"]
            yield Outcome(
                job=job, runs=[make_run(optimizer=job.optimizer, learning_rate=rate, validation=0.5)]
            )

    return run


def test_tuning_stops_at_the_furthest_rate():
    run = fake_runs(lambda m, r: r, [])
    rates = tuning.tune([(build, choose_methods(["joint"]))], optimizers=["sgd"], seeds=[0], run=run)
    assert rates["toy", "sgd", "joint"] == pytest.approx(0.03 * 2**tuning.FURTHEST)


# store ---------------------------------------------------------------------------------------------------------------


def job(**changes):
    values = {
        "build": build,
        "optimizer": "sgd",
        "methods": choose_methods(["joint"]),
        "seed": 0,
        "epochs": 2,
    }
    return Job(**(values | changes))


def test_a_store_knows_its_jobs_again(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    alone = Alone(dataset="toy", optimizer="sgd", seed=0, probe={"a": 1.0})
    kept = store.Store(path)
    assert kept.find(job()) is None
    kept.add(Outcome(job=job(), runs=[make_run()], alone=alone))
    kept.add(Outcome(job=job(only_accuracy=True), runs=[make_run(accuracy=0.7)]))
    again = store.Store(path)
    found = again.find(job())
    assert (found.runs, found.alone) == ([make_run()], alone)
    assert again.find(job(only_accuracy=True)).runs[0].accuracy == 0.7
    changed = Method(METHODS["unimodal"].policy)
    for change in (
        {"seed": 1},
        {"epochs": 3},
        {"optimizer": "adam"},
        {"learning_rates": {"joint": 0.5}},
        {"methods": {"joint": changed}},
    ):
        assert again.find(job(**change)) is None


def test_a_line_cut_off_is_run_again_and_rubbish_is_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    kept = store.Store(path)
    for seed in (0, 1):
        kept.add(Outcome(job=job(seed=seed), runs=[make_run(seed=seed)]))
    path.write_text(path.read_text()[:-20])
    again = store.Store(path)
    assert again.find(job(seed=0)) is not None
    assert again.find(job(seed=1)) is None
    again.add(Outcome(job=job(seed=1), runs=[make_run(seed=1)]))
    assert store.Store(path).find(job(seed=1)) is not None
    path.write_text('{"hello": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not a finished job"):
        store.Store(path)


def test_jobs_on_another_copy_of_the_data_or_of_another_version_run_again(tmp_path, monkeypatch):
    kept = store.Store(tmp_path / "runs.jsonl")
    here = job(build=functools.partial(with_folder, tmp_path / "a"))
    kept.add(Outcome(job=here, runs=[make_run()]))
    assert kept.find(job(build=functools.partial(with_folder, tmp_path / "b" / ".." / "a"))) is not None
    assert kept.find(job(build=functools.partial(with_folder, tmp_path / "b"))) is None
    monkeypatch.setattr("cggm.__version__", "9.9")
    assert kept.find(here) is None


def with_folder(folder):
    return build()


def test_a_second_comparison_in_one_folder_is_refused(tmp_path, capsys):
    arguments = [*ARGUMENTS, "--experiment", "test_compare:build_balanced", "--out", str(tmp_path)]
    with store.Store(tmp_path / "compare.jsonl").locked():
        assert cli.main(arguments) == 2
    assert "another process is writing to" in capsys.readouterr().err
    with store.Store(tmp_path / "compare.jsonl").locked():  # freed again
        pass


# report --------------------------------------------------------------------------------------------------------------


def test_intervals_are_students():
    values = [0.01, 0.03, 0.02, 0.05]
    interval = Interval.of(values)
    half = 3.18244630528 * np.std(values, ddof=1) / 2
    assert interval == pytest.approx((0.0275, 0.0275 - half, 0.0275 + half), rel=1e-6)
    assert Interval.of([0.01]).text() == "+1.0"


def test_tables_and_picture(tmp_path):
    from rich.console import Console

    runs = [
        make_run(
            m, s, 0.5 + gain * (s + 1), dataset=d, optimizer=o, peak_bytes=1000 if m == "joint" else 1500
        )
        for d in ("toy", "other")
        for o in ("sgd", "adam")
        for m, gain in (("joint", 0.0), ("default", 0.01))
        for s in (0, 1, 2)
    ]
    rows = report.summarize(runs, [])
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in comparison.tables(rows):
        console.print(table)
    text = console.export_text()
    assert text.count("+2.0 [-0.5, +4.5]") == 4
    assert text.count("3/3") == 4
    assert text.count("1.50x") == 4
    path = tmp_path / "new" / "compare.png"
    comparison.plot(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no difference to joint"):
        comparison.plot([row for row in rows if row.method == "joint"], path)


# the command ---------------------------------------------------------------------------------------------------------

ARGUMENTS = [
    "compare",
    "--methods",
    "joint",
    "unimodal",
    "--optimizers",
    "sgd",
    "--seeds",
    "2",
    "--epochs",
    "1",
]


def test_at_joints_rate_every_method_runs_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "execute", lambda jobs, **_: map(loop.run_job, jobs))
    arguments = [*ARGUMENTS, "--experiment", "test_compare:build_balanced", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--tune"]) == 0
    runs = json.loads((tmp_path / "compare.json").read_text())["runs"]
    tuned = {run["method"]: run["learning_rate"] for run in runs if run["dataset"] == "toy"}
    shared = [run for run in runs if run["dataset"] == "toy, joint's rate"]
    assert [(run["method"], run["seed"]) for run in shared] == [
        ("joint", 0),
        ("unimodal", 0),
        ("joint", 1),
        ("unimodal", 1),
    ]
    assert {run["learning_rate"] for run in shared} == {tuned["joint"]}


def test_compare_runs_tunes_and_goes_on(tmp_path, capsys, monkeypatch):
    ran = []

    def here(jobs, **options):  # worker processes have tests of their own
        for job in jobs:
            ran.append(job)
            yield loop.run_job(job)

    monkeypatch.setattr(store, "execute", here)
    arguments = [*ARGUMENTS, "--experiment", "test_compare:build_balanced", "--tune", "--no-joint-rate"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [(r["method"], r["seed"]) for r in written["runs"]] == [
        ("joint", 0),
        ("unimodal", 0),
        ("joint", 1),
        ("unimodal", 1),
    ]
    assert (tmp_path / "compare.png").exists()
    assert "toy" in capsys.readouterr().out
    tuning_seeds = {j.seed for j in ran if j.only_accuracy}
    assert len(tuning_seeds) == 3
    assert not tuning_seeds & {0, 1}
    lines = (tmp_path / "compare.jsonl").read_text().splitlines()
    # a killed run: the last job is lost, all others are found again
    (tmp_path / "compare.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    ran.clear()
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert [j.seed for j in ran] == [1]
    again = json.loads((tmp_path / "compare.json").read_text())
    assert [r["accuracy"] for r in again["runs"]] == [r["accuracy"] for r in written["runs"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "unknown data set 'mnist'"),
        (["--methods", "joints"], "did you mean 'joint'"),
        (["--optimizers", "lion"], "optimizers must be"),
        (["--seeds", "0"], "seeds must be"),
        (["--epochs", "0"], "epochs must be"),
    ],
)
def test_nonsense_gets_one_line_and_no_file(arguments, message, tmp_path, capsys):
    assert cli.main(["compare", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_comparison_reports_what_it_has(tmp_path, monkeypatch, capsys):
    def stopped(jobs, **options):
        yield Outcome(job=jobs[0], runs=[make_run("joint", 0), make_run("unimodal", 0, 0.6)])
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "execute", stopped)
    asked = Comparison(experiment=("test_compare:build",), methods=("joint", "unimodal"), out=tmp_path)
    assert not run_compare(asked)
    assert "goes on from" in capsys.readouterr().out
    assert len((tmp_path / "compare.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "compare.json").exists()
