import dataclasses
import functools
import io
import json
import multiprocessing
import os
from importlib import resources

import numpy as np
import pytest
import torch

from cggm.experiments.datasets import avdigits
from cggm.experiments.reports import demo_plot, report
from cggm.experiments.training import loop, measuring, methods, runner
from cggm.experiments.training.methods import METHODS, choose_methods
from cggm.experiments.training.results import Alone, History, Job, Run

DATA = resources.files("cggm.experiments.datasets") / "data"
METHODS_OF_THE_ISSUE = ("joint", "unimodal", "cggm", "cggm-paper", "cggm-released")


def job(**changes):
    settings = {
        "build": avdigits.build,
        "optimizer": "sgd",
        "methods": ("joint", "cggm"),
        "seed": 3,
        "epochs": 1,
    }
    settings |= changes
    return Job(**{**settings, "methods": choose_methods(settings["methods"])})


def make_run(method, seed, accuracy, seconds=1.0, optimizer="sgd", dataset="toy"):
    return Run(
        dataset=dataset,
        optimizer=optimizer,
        method=method,
        seed=seed,
        learning_rate=0.1,
        accuracy=accuracy,
        f1=accuracy,
        validation=accuracy,
        validation_loss=1.0,
        validation_rows=100,
        peak_bytes=1000,
        probe={"a": accuracy, "b": 0.5},
        seconds_per_step=seconds,
    )


# data ----------------------------------------------------------------------------------------------------------------


def test_recordings_are_complete():
    with (DATA / "spoken_digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
        frames, lengths, digits = archive["frames"], archive["lengths"], archive["digits"]
    assert frames.shape == (lengths.sum(), 13)
    assert np.isfinite(frames).all()
    assert np.bincount(digits).tolist() == [300] * 10
    assert (lengths.min(), lengths.max()) == (6, 92)


def test_data_are_small_and_carry_their_licence():
    assert len((DATA / "spoken_digits.npz").read_bytes()) < 3_000_000
    licence = (DATA / "SPOKEN_DIGITS_LICENSE.txt").read_text()
    for needed in ("CC BY-SA 4.0", "Jackson", "github.com/Jakobovski/free-spoken-digit-dataset", "changed"):
        assert needed in licence


def test_spoken_digits_are_standardized_and_padded():
    audio, digits = avdigits.spoken_digits()
    assert audio.shape == (3000, 13, 32)
    assert digits.shape == (3000,)
    with (DATA / "spoken_digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
        lengths = archive["lengths"]
    short = np.flatnonzero(lengths < 32)
    assert (audio[short[0], :, lengths[short[0]] :] == 0).all()
    filled = np.concatenate([a[:, :n].T for a, n in zip(audio, np.minimum(lengths, 32), strict=True)])
    np.testing.assert_allclose(
        filled.mean(0), 0, atol=0.05
    )  # not 0: the corpus holds the frames cut off, too
    np.testing.assert_allclose(filled.std(0), 1, atol=0.05)


@pytest.mark.parametrize("seed", [0, 17])
def test_parts_share_no_recording_and_no_image(seed, monkeypatch):
    """Without noise, every sample of a part can be traced back to its source."""
    monkeypatch.setitem(avdigits.NOISE, "silent", avdigits.Noise(image=0.0, audio=0.0))
    parts = avdigits.load(seed, "silent")
    images, _ = avdigits.written_digits()
    assert len(np.unique(images, axis=0)) == len(images), "equal images could not be told apart below"
    for modality in range(2):
        train, validation, test = (
            {sample.tobytes() for sample in part.inputs[modality].flatten(1).numpy()} for part in parts
        )
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_pairs_show_the_same_digit():
    generator = np.random.default_rng(0)
    images, recordings = generator.integers(10, size=500), generator.integers(10, size=700)
    i, r, digits = avdigits.pair_rows(images, recordings, 95, generator)
    assert (images[i] == digits).all()
    assert (recordings[r] == digits).all()
    assert sorted(np.bincount(digits)) == [9] * 5 + [10] * 5


def test_rows_are_split_without_overlap():
    parts = avdigits.split_rows(1797, avdigits.IMAGES_SPLIT, np.random.default_rng(1))
    assert [len(part) for part in parts] == [1000, 297, 500]
    assert len(np.unique(np.concatenate(parts))) == 1797


def test_leading_components_are_projected_out():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((400, 64)).astype(np.float32) * np.linspace(
        3, 0.1, 64, dtype=np.float32
    )
    train = np.arange(300)
    whole = avdigits.prepare_images(images, train, 0.0)
    np.testing.assert_allclose(whole[train].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(whole[train].std(), 1, atol=1e-5)
    rest = avdigits.prepare_images(images, train, 0.75)
    assert 0.15 < (rest[train] ** 2).sum() / (whole[train] ** 2).sum() <= 0.25


def test_noise_settings_differ_and_unknown_ones_are_refused():
    stds = {
        name: [x.std().item() for x in avdigits.load(0, name).train.inputs] for name in ("demo", "noisier")
    }
    assert stds["demo"][0] == pytest.approx(stds["noisier"][0])
    assert stds["demo"][1] < stds["noisier"][1] - 0.2
    with pytest.raises(ValueError, match="noise must be one of"):
        avdigits.build("loud")


# training ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome():
    torch.set_num_threads(1)
    return loop.run_job(job(methods=METHODS_OF_THE_ISSUE, epochs=2, history=True))


def results(outcome):
    return [dataclasses.replace(run, seconds_per_step=0.0) for run in outcome.runs]


def test_a_job_is_deterministic_and_its_methods_do_not_touch_each_other(outcome):
    again = loop.run_job(job(methods=("cggm", "joint"), epochs=2))
    expected = {run.method: run for run in results(outcome)}
    assert results(again) == [expected["cggm"], expected["joint"]]
    assert again.alone == outcome.alone
    assert (
        loop.run_job(job(methods=("joint",), epochs=2, seed=4)).runs[0].accuracy != expected["joint"].accuracy
    )


def test_every_method_learns_something_of_its_own(outcome):
    assert [run.method for run in outcome.runs] == list(METHODS_OF_THE_ISSUE)
    for run in outcome.runs:
        assert 0.15 < run.accuracy <= 1
        assert set(run.probe) == {"image", "audio"}
        assert all(0.1 < value <= 1 for value in run.probe.values())
        assert run.seconds_per_step > 0
    assert len({(run.accuracy, *run.probe.values()) for run in outcome.runs}) == len(outcome.runs)


def test_history_holds_every_step(outcome):
    steps = 2 * 19  # 1,200 pairs in batches of 64
    for history in outcome.histories:
        assert history.accuracy.shape == (2,)
        assert history.steps_per_epoch == 19
        assert bool(history.statistics) == (history.method != "joint")
        for name, values in history.statistics.items():
            assert values.shape == ((steps,) if name == "loss" else (steps, 2))
    final = {run.method: run.accuracy for run in outcome.runs}
    assert {h.method: h.accuracy[-1] for h in outcome.histories} == final


def test_the_joint_run_is_plain_training():
    """The same model, trained here without any of the library, ends with the same accuracy."""
    experiment = avdigits.build()
    data = experiment.load(3)
    torch.manual_seed(3)
    model = experiment.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    batches = torch.Generator().manual_seed(3)
    for rows in torch.randperm(1200, generator=batches).split(64):
        optimizer.zero_grad()
        logits = model(*(values[rows] for values in data.train.inputs))
        torch.nn.functional.cross_entropy(logits, data.train.target[rows]).backward()
        optimizer.step()
    expected = (model(*data.test.inputs).argmax(1) == data.test.target).double().mean().item()
    assert loop.run_job(job(methods=("joint",))).runs[0].accuracy == expected


def test_a_diverged_encoder_probes_as_chance():
    class Diverged(torch.nn.Module):
        def forward(self, values):
            return torch.full((len(values), 4), float("nan"))

    assert measuring.probe(Diverged(), avdigits.load(0), 0) == pytest.approx(0.1)


def test_methods_are_checked():
    assert choose_methods(METHODS) == METHODS
    assert list(choose_methods(["joint", "encoder-rates"], 3))[1:] == list(methods.encoder_rates(3))
    with pytest.raises(ValueError, match="did you mean 'cggm-paper'"):
        choose_methods(["cggm-papr"])
    with pytest.raises(ValueError, match="at least one"):
        choose_methods([])


# runner --------------------------------------------------------------------------------------------------------------


def test_a_plan_goes_seed_by_seed():
    jobs = runner.plan(
        avdigits.build, methods=choose_methods(["joint"]), optimizers=["adam", "sgd"], seeds=[7, 8]
    )
    assert [(j.seed, j.optimizer, j.epochs) for j in jobs] == [
        (7, "adam", 20),
        (7, "sgd", 20),
        (8, "adam", 20),
        (8, "sgd", 20),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ["lion"]}, "optimizers must be"),
        ({"optimizers": []}, "optimizers must be"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"epochs": 0}, "epochs must be"),
    ],
)
def test_a_plan_refuses_nonsense(changes, message):
    good = {"methods": choose_methods(["joint"]), "optimizers": ["sgd"], "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        runner.plan(avdigits.build, **{**good, **changes})


def test_workers_find_what_this_process_finds():
    jobs = [job(methods=("joint",), seed=seed) for seed in (5, 6)]
    counted = []
    found = {o.job.seed: o for o in runner.execute(jobs, processes=1, advance=counted.append)}
    assert sum(counted) == 2
    assert results(found[5]) == results(loop.run_job(jobs[0]))
    assert set(found) == {5, 6}


def test_an_error_in_a_worker_reaches_the_caller():
    broken = job(build=functools.partial(avdigits.build, "loud"))
    with pytest.raises(ValueError, match="noise must be one of"):
        list(runner.execute([broken], processes=1))


def dies_in_a_worker():
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return avdigits.build()


def test_a_worker_that_was_killed_gets_one_line():
    with pytest.raises(ChildProcessError, match="a worker process was killed"):
        list(runner.execute([job(build=dies_in_a_worker)], processes=1))


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="processes must be"):
        next(runner.execute([job()], processes=0))


# report --------------------------------------------------------------------------------------------------------------


def test_rows_pair_the_seeds():
    runs = [make_run("joint", s, a, 2.0) for s, a in enumerate((0.90, 0.80, 0.70))]
    runs += [make_run("cggm", s, a, 3.0) for s, a in ((0, 0.92), (2, 0.69))]  # seed 1 is missing
    alone = [Alone(dataset="toy", optimizer="sgd", seed=s, probe={"a": 0.9, "b": 0.1 * s}) for s in range(3)]
    joint, cggm = report.summarize(runs, alone)
    assert (joint.seeds, joint.difference, joint.wins, joint.relative_time) == (3, None, None, 1.0)
    assert joint.accuracy == pytest.approx((0.8, 0.1))
    assert cggm.difference == pytest.approx((0.005, np.std([0.02, -0.01], ddof=1)))
    assert (cggm.seeds, cggm.wins, cggm.relative_time) == (2, (1, 2), 1.5)
    assert cggm.alone["b"].mean == pytest.approx(0.1)


def test_rows_without_joint_runs_claim_nothing():
    (row,) = report.summarize([make_run("cggm", 0, 0.5)], [])
    assert (row.difference, row.wins, row.relative_time, row.alone) == (None, None, None, {})


@pytest.mark.parametrize("datasets", [("toy",), ("toy", "other")])
def test_the_table_shows_every_row(datasets):
    from rich.console import Console

    runs = [
        make_run(m, s, 0.5 + 0.1 * s + gain, optimizer=o, dataset=d)
        for d in datasets
        for o in ("sgd", "adam")
        for m, gain in (("joint", 0.0), ("cggm", 0.05))
        for s in (0, 1)
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(report.summarize(runs, [])))
    text = console.export_text()
    assert text.count("+5.0 ± 0.0") == 2 * len(datasets)
    assert text.count("2/2") == 2 * len(datasets)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_json_has_the_promised_fields_and_is_replaced_at_once(outcome, tmp_path):
    path = tmp_path / "new" / "demo.json"
    report.write_json(path, [outcome])
    written = json.loads(path.read_text())
    assert set(written) == {"environment", "runs", "alone"}
    assert {"torch", "backend", "cores"} <= set(written["environment"])
    fields = {"dataset", "optimizer", "method", "seed", "accuracy", "probe", "seconds_per_step"}
    assert all(set(run) >= fields for run in written["runs"])
    assert [run["method"] for run in written["runs"]] == list(METHODS_OF_THE_ISSUE)
    before = path.read_bytes()
    unwritable = dataclasses.replace(outcome.alone, probe={"image": object()})
    with pytest.raises(TypeError):
        report.write_json(path, [dataclasses.replace(outcome, alone=unwritable)])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["demo.json"]


def test_the_picture_is_drawn(outcome, tmp_path):
    path = tmp_path / "new" / "demo.png"
    demo_plot.plot(outcome.histories, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    only_joint = [h for h in outcome.histories if h.method == "joint"]
    assert demo_plot.shown_method(outcome.histories) == "cggm"
    assert demo_plot.shown_method(only_joint) is None
    demo_plot.plot(only_joint, path)
    with pytest.raises(ValueError, match="history=True"):
        demo_plot.plot([], path)


def test_several_seeds_are_shaded(tmp_path):
    histories = [
        History(
            optimizer="sgd",
            method=method,
            seed=seed,
            modalities=("a", "b", "c"),
            steps_per_epoch=2,
            accuracy=np.array([0.5, 0.6 + 0.01 * seed]),
            statistics={
                name: np.random.default_rng(seed).random((4, 3)) for name in ("coefficients", "scores")
            },
        )
        for method in ("joint", "unimodal")
        for seed in (0, 1)
    ]
    path = tmp_path / "several.svg"
    demo_plot.plot(histories, path)
    assert path.stat().st_size > 5000
