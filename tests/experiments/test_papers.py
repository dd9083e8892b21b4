"""The papers' experiments, end to end, on small files in exactly the formats in which the sets circulate."""

import json
import pickle

import numpy as np
import pytest
import torch

from cggm import cli
from cggm.experiments.papers import brats, cremad, food101, iemocap, metrics, mosi, recipe, transformer
from paper_files import write_brats, write_cremad, write_food, write_food_models, write_iemocap, write_mosi


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# end to end ----------------------------------------------------------------------------------------------------------


def run(folder, name, data, policy="cggm-released", *more):
    arguments = ["experiment", name, "--data", str(data), "--policy", policy, "--epochs", "1"]
    assert cli.main([*arguments, "--batch-size", "4", "--out", str(folder), *more]) == 0
    result = json.loads((folder / f"{name}-{policy}-0.json").read_text())
    assert result["epoch"] == 1
    for part in ("validation", "test"):
        assert all(np.isfinite(value) for value in result[part].values())
    return result


@pytest.mark.parametrize("policy", ["cggm-released", "joint", "default"])
def test_mosi(tmp_path, policy):
    result = run(tmp_path, "mosi", write_mosi(tmp_path), policy)
    assert 0 < result["test"]["error"] < 6


def test_iemocap(tmp_path):
    result = run(tmp_path, "iemocap", write_iemocap(tmp_path / "data"))
    assert 0 <= result["test"]["accuracy"] <= 1


def test_food101(tmp_path):
    data, words = write_food(tmp_path / "data")
    vit, bert = write_food_models(tmp_path, words)
    run(tmp_path, "food101", data, "cggm-paper", "--models", str(vit), str(bert))
    built = food101.build(data, vit=str(vit), bert=str(bert))
    built.model.train()
    assert not built.model.image.training
    assert not any(p.requires_grad for p in built.model.text.parameters())
    assert len(built.data.train[3][0][1]) > len(built.data.train[0][0][1]), "texts of different lengths"


def test_brats(tmp_path, monkeypatch):
    monkeypatch.setattr(brats, "CROP", 64)
    result = run(tmp_path, "brats", write_brats(tmp_path / "data"))
    assert set(result["test"]) == {"whole", "core", "enhancing"}


def test_cremad(tmp_path, monkeypatch):
    monkeypatch.setattr(cremad.build, "__kwdefaults__", {"side": 64})
    (tmp_path / "data").mkdir()
    run(tmp_path, "cremad", write_cremad(tmp_path / "data"), "ogm-ge")


# what is read --------------------------------------------------------------------------------------------------------


def test_mosi_holds_what_the_file_holds(tmp_path):
    path = write_mosi(tmp_path)
    raw = pickle.loads(path.read_bytes())
    data = mosi.read(tmp_path)
    (text, audio, vision), label = data.validation[2]
    assert (text.numpy() == raw["valid"]["text"][2]).all()
    assert (vision.numpy() == raw["valid"]["vision"][2]).all()
    assert label.item() == raw["valid"]["labels"][2, 0, 0]
    assert data.train[0][0][1][3, 2] == 0, "minus infinity becomes 0"
    assert (audio.numpy() == raw["valid"]["audio"][2]).all()


def test_mosi_leaves_what_it_does_not_use(tmp_path):
    path = write_mosi(tmp_path)
    parts = pickle.loads(path.read_bytes())
    parts["train"]["id"] = np.array([[b"a", "b", 1.0]] * 12, dtype=object)
    path.write_bytes(pickle.dumps(parts))
    assert len(mosi.read(path).train) == 12


def test_iemocap_is_standardized_and_shortened(tmp_path):
    folder = write_iemocap(tmp_path / "data")
    data = iemocap.read(folder, 1)
    lengths = [len(sequence) for i in range(8) for sequence in data.train[i][0]]
    assert max(lengths) <= iemocap.FRAMES
    assert len(set(lengths)) > 1
    spread = torch.cat([data.train[i][0][1] for i in range(8) if len(data.train[i][0][1]) < 100]).std()
    assert 0.4 < spread < 0.6, "standard normal over the file's deviation of 2"
    assert data.test.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("nifti", [False, True])
def test_brats_slices_show_tumour(tmp_path, nifti):
    data = brats.read(write_brats(tmp_path / "data", nifti=nifti))
    assert len(data.train) == 2  # the first slice has none
    planes, label = data.train[0]
    assert [tuple(plane.shape) for plane in planes] == [(1, 160, 160)] * 4
    assert sorted(label.unique().tolist()) == [0, 2, 3]
    assert (label == 3).sum() == 1600
    torch.testing.assert_close(planes[0].mean(), torch.tensor(0.0), atol=0.05, rtol=0)


def test_cremad_holds_out_the_same_clips(tmp_path):
    folder = write_cremad(tmp_path)
    data, again = cremad.read(folder, side=32), cremad.read(folder, side=32)
    assert data.validation.rows == again.validation.rows
    assert not set(data.validation.rows) & set(data.train.rows)
    assert len(data.train) + len(data.validation) == 5
    (sound, face), label = data.test[1]
    assert sound.shape == (1, 257, 1 + 12000 // 353)
    assert face.shape == (3, 32, 32)
    assert label == 1


def test_padding_changes_nothing():
    torch.manual_seed(0)
    sizes = transformer.Sizes(2, 0.1, 0.1, 0.1, 0.1, 0.1)
    model = transformer.SequenceModel({"a": 6, "b": 3}, 4, sizes).eval()
    a, b = torch.randn(2, 5, 6), torch.randn(2, 7, 3)
    longer = torch.cat([a, torch.zeros(2, 9, 6)], 1)
    torch.testing.assert_close(model(longer, b), model(a, b))
    assert torch.isfinite(model(torch.zeros(2, 5, 6), b)).all()


def test_dice_counts_nested_regions():
    target = torch.tensor([[[0, 1, 2, 3]]])
    assert metrics.dice(target, target) == {"whole": 1.0, "core": 1.0, "enhancing": 1.0}
    found = metrics.dice(torch.tensor([[[0, 3, 2, 3]]]), target)
    assert found == {"whole": 1.0, "core": 1.0, "enhancing": pytest.approx(2 / 3)}


def test_brats_learning_rates():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = brats.schedule(optimizer)
    rates = []
    for _ in range(brats.EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(4e-4)
    assert rates[10] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001, rel=0.02)


def test_the_best_validation_epoch_is_tested(tmp_path, monkeypatch):
    built = mosi.build(write_mosi(tmp_path))
    scores = iter([-2.0, -1.0, -3.0, -9.0])
    states = []

    def evaluate(made, model, part, device):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"negative error": next(scores)}

    monkeypatch.setattr(recipe, "evaluate", evaluate)
    object.__setattr__(built, "epochs", 3)
    result = recipe.run(built, "joint")
    assert (result["epoch"], result["validation"], result["test"]) == (
        2,
        {"negative error": -1.0},
        {"negative error": -9.0},
    )
    assert all((states[3][k] == states[1][k]).all() for k in states[1])
    assert any((states[2][k] != states[1][k]).any() for k in states[1])


# errors --------------------------------------------------------------------------------------------------------------


def refused(capsys, name, data, *more):
    assert cli.main(["experiment", name, "--data", str(data), *more]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


@pytest.mark.parametrize("name", ["mosi", "iemocap", "brats", "cremad", "food101"])
def test_a_wrong_path_is_named(name, tmp_path, capsys):
    assert str(tmp_path / "nowhere") in refused(capsys, name, tmp_path / "nowhere")


def test_mosi_refuses_what_is_something_else(tmp_path, capsys):
    path = write_mosi(tmp_path)
    parts = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({k: v for k, v in parts.items() if k != "valid"}))
    assert "no part ['valid']" in refused(capsys, "mosi", path)
    path.write_bytes(pickle.dumps(parts | {"test": {"text": parts["test"]["text"]}}))
    assert "test has no ['audio', 'vision', 'labels']" in refused(capsys, "mosi", path)
    path.write_bytes(pickle.dumps(parts | {"train": parts["train"] | {"labels": np.zeros(3)}}))
    assert "expected [n, 50, width]" in refused(capsys, "mosi", path)
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in refused(capsys, "mosi", path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_runs_no_code(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"train": Evil()}))
    assert cli.main(["experiment", "mosi", "--data", str(path)]) == 2
    shown = capsys.readouterr()
    assert "executed" not in shown.out
    assert "is not an array" in shown.err


def test_iemocap_refuses_what_is_something_else(tmp_path, capsys):
    folder = write_iemocap(tmp_path / "data")
    assert "labels of fold 7" in refused(capsys, "iemocap", folder, "--fold", "7")
    (folder / "V/denseface.h5").write_bytes(b"nothing")
    assert "denseface.h5" in refused(capsys, "iemocap", folder)


def test_food101_refuses_what_is_something_else(tmp_path, capsys):
    data, _ = write_food(tmp_path / "data")
    (data / "dev.json").unlink()
    assert "dev.json" in refused(capsys, "food101", data)
    (data / "dev.json").write_text("[{")
    assert "cannot be read" in refused(capsys, "food101", data)
    (data / "dev.json").write_text('[{"id": 1}]')
    assert "entry 0 has no" in refused(capsys, "food101", data)


def test_brats_refuses_what_is_something_else(tmp_path, capsys):
    folder = write_brats(tmp_path / "data")
    (folder / "valid" / "BraTS2021_valid.h5").write_bytes(b"nothing")
    assert "BraTS2021_valid.h5" in refused(capsys, "brats", folder)
    (folder / "valid" / "BraTS2021_valid.h5").unlink()
    assert "no patient" in refused(capsys, "brats", folder)


def test_cremad_refuses_what_is_something_else(tmp_path, capsys):
    folder = write_cremad(tmp_path)
    (folder / "train.csv").write_text("1001_DFA,JOY\n")
    assert "line 1" in refused(capsys, "cremad", folder)


def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch):
    folder = write_iemocap(tmp_path / "data")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert 'pip install "cggm[papers]"' in refused(capsys, "iemocap", folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--policy", "cggmm"),
        ("--policy", "ensemble"),
        ("--policy", "encoder-rates"),
        ("--epochs", "0"),
        ("--batch-size", "0"),
    ],
)
def test_wrong_options_are_refused_before_the_data_are_read(option, value, tmp_path, capsys):
    assert "nowhere" not in refused(capsys, "mosi", tmp_path / "nowhere", option, value)
