"""The tutorials run, in a folder of the reader's, and what their text concludes is what came out."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples/tutorials"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tutorial(name):
        found = runpy.run_path(str(FOLDER / f"{name}.py"))
        assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
        return found

    return tutorial


def test_a_policy_of_your_own(run):
    results = run("5_own_policy")["results"]
    gain = results["UnimodalLosses() + Laggards()"] - results["UnimodalLosses()"]
    assert gain.mean() > gain.std()
    assert (results["Laggards()"] - results["joint training"]).mean() > 0


@pytest.mark.slow
def test_digits(run):
    found = run("1_digits")
    assert found["report"].modalities["audio"].kind == "starved"
    assert found["report"].overall == "unbalanced"
    assert found["difference"].min() > 0


@pytest.mark.slow
def test_sensors(run):
    found = run("2_sensors")
    assert all(modality.kind == "well learnt" for modality in found["report"].modalities.values())
    joint, alone, default = (
        found["results"][name].mean(0) for name in ("joint training", "dropout alone", "the default")
    )
    assert abs(default - joint)[0] < 3
    assert (default - joint)[1:].min() > 15  # a sensor is missing
    assert abs(default - alone).max() < 5


@pytest.mark.slow
def test_text_and_image(run):
    pytest.importorskip("transformers")
    found = run("3_text_image")
    assert found["report"].overall not in ("unbalanced", "starved in vain")
    assert found["results"]["the default"].mean() < found["results"]["joint training"].mean()


@pytest.mark.slow
def test_segmentation(run):
    found = run("4_segmentation")
    assert found["report"].overall == "starved in vain"
    joint, alone, default = (
        found["results"][name].mean(0) for name in ("joint training", "dropout alone", "the default")
    )
    assert abs(default - joint)[0] < 3
    for scan in (2, 4):  # without T1ce, without FLAIR
        assert joint[scan] + 10 < alone[scan] < default[scan]
