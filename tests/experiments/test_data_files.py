"""Data sets that the user has as files, on small files in the same formats; and what `cggm data` says about them."""

import numpy as np
import pytest
import torch

from cggm import cli
from cggm.experiments.compare import Comparison, run_compare
from cggm.experiments.datasets import sanity, utd_mhad
from cggm.experiments.datasets.registry import FROM_FILES, find_experiment
from cggm.experiments.experiment import Split, Splits
from matlab_files import RANDOM, WRITERS, write_cub, write_scene15, write_utd, write_wiki


def test_every_data_set_has_a_writer_here():
    assert set(WRITERS) == set(FROM_FILES)


@pytest.mark.parametrize("name", WRITERS)
def test_each_loads_and_runs(name, tmp_path):
    WRITERS[name](tmp_path)
    experiment = find_experiment(name, tmp_path)()
    data = experiment.load(0)
    assert experiment.name == name
    model = experiment.model()
    for part in data:
        assert len(part.target) > 0
        assert part.target.dtype == torch.int64
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in part.inputs)
        assert model(*part.inputs).shape == (len(part.target), model.head.out_features)
    again = experiment.load(0)
    assert [part.target.tolist() for part in again] == [part.target.tolist() for part in data]
    assert torch.equal(again.test.inputs[1], data.test.inputs[1])
    assert experiment.fixed_test == (name in ("wiki", "utd-mhad"))


def test_duplicate_rows_are_dropped_and_no_row_is_in_two_parts(tmp_path):
    write_scene15(tmp_path)
    data = find_experiment("scene15", tmp_path)().load(3)
    rows = [{row.numpy().tobytes() for row in part.inputs[0]} for part in data]
    assert sum(map(len, rows)) == sum(len(part.target) for part in data) == 59
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    assert [len(part.target) for part in data] == [38, 9, 12]


def test_inputs_are_standardized_by_the_training_rows_alone(tmp_path):
    write_cub(tmp_path)
    data = find_experiment("cub", tmp_path)().load(0)
    torch.testing.assert_close(data.train.inputs[0].mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    assert data.test.inputs[0].mean(0).abs().max() > 1e-3


def test_wikis_test_part_is_the_files(tmp_path):
    write_wiki(tmp_path)
    parts = [find_experiment("wiki", tmp_path)().load(seed) for seed in (0, 1)]
    assert torch.equal(parts[0].test.inputs[1], parts[1].test.inputs[1])
    assert not torch.equal(parts[0].validation.inputs[1], parts[1].validation.inputs[1])
    assert parts[0].test.target.tolist() == [i % 10 for i in range(12)]


def test_no_subject_is_trained_on_and_tested(tmp_path):
    write_utd(tmp_path)
    inertial, _, actions, subjects = utd_mhad.read(tmp_path)
    assert inertial.shape == (24, 6, 128)
    assert sorted(set(actions.tolist())) == [0, 1, 26]
    fixed = find_experiment("utd-mhad", tmp_path)().load(0)
    assert [len(part.target) for part in fixed] == [9, 3, 12]
    train = inertial[np.isin(subjects, (1, 3, 5))]
    expected = (train - train.mean((0, 2), keepdims=True)) / train.std((0, 2), keepdims=True)
    torch.testing.assert_close(fixed.train.inputs[0], torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    drawn = [find_experiment("utd-mhad-subjects", tmp_path)().load(seed) for seed in range(4)]
    assert all([len(part.target) for part in data] == [9, 3, 12] for data in drawn)
    assert len({data.test.inputs[1].numpy().tobytes() for data in drawn}) > 1


def test_a_pose_keeps_movements_and_drops_place_and_size():
    joints = RANDOM.standard_normal((20, 3, 30))
    here = utd_mhad.pose(joints)
    np.testing.assert_allclose(utd_mhad.pose(3 * joints + 5), here, atol=1e-12)
    assert np.abs(here.mean(1)).max() < 1e-12
    assert np.abs(utd_mhad.pose(joints[..., ::-1]) - here).max() > 0.1


def test_files_have_to_be_named_and_are_found_in_a_common_folder(tmp_path, capsys):
    assert cli.main(["compare", "--dataset", "cub", "--out", str(tmp_path / "out")]) == 2
    assert "--data PATH; `python -m pydoc cggm.experiments.datasets.multiview`" in capsys.readouterr().err
    for folder, write in (("cub", write_cub), ("wiki", write_wiki), ("utd_mhad", write_utd)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    for name in ("cub", "wiki", "utd-mhad"):
        assert find_experiment(name, tmp_path)().load(0)
    assert cli.main(["compare", "--dataset", "uci", "--data", str(tmp_path)]) == 2
    assert "data is read only by the data sets ['utd-mhad'" in capsys.readouterr().err


def test_a_comparison_reads_the_files_in_its_workers(tmp_path):
    write_cub(tmp_path)
    asked = Comparison(
        dataset=("cub",), data=tmp_path, methods=("joint",), optimizers=("adam",), seeds=1, epochs=1, processes=1,
        out=tmp_path / "out",
    )  # fmt: skip
    assert run_compare(asked)
    assert (tmp_path / "out" / "compare.json").exists()


# what is said --------------------------------------------------------------------------------------------------------


def split(inputs, target):
    return Split(tuple(inputs), torch.tensor(target))


def test_copies_near_copies_order_and_missing_classes_are_reported():
    train = torch.eye(6)
    test = train[:3].clone()
    test[1, 5] += 0.05  # a near-copy
    test[2] = torch.arange(6.0)
    other = split((train, train), [0, 1, 0, 1, 0, 1])
    data = Splits(split((train, train), [0, 0, 0, 0, 1, 1]), other, split((test, -test), [0, 0, 0]))
    left, right, whole = sanity.describe_overlaps(data, ["left", "right"])
    assert (left.copies, right.copies, whole.copies) == (1, 0, 0)
    assert left.similar == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert right.similar == (0, 0, 0)
    lines = sanity.warnings(data, ["left", "right"])
    assert [line.split(":")[0] for line in lines] == ["test part", "left"]
    assert "has 1 of 2 classes" in lines[0]
    grouped = Splits(split((train, train), [0] * 6), data.validation, data.train)
    first, missing, copies = sanity.warnings(grouped, ["left", "right"])
    assert first.startswith("train part: labels are sorted or grouped")
    assert missing == "train part: has 1 of 2 classes"
    assert copies.startswith("6 test rows equal a training row in every modality")


def test_cggm_data_prints_it(tmp_path, capsys):
    write_wiki(tmp_path)
    assert cli.main(["data", "wiki", "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "wiki, seed 0: image [8], text [9]" in shown
    assert "all together" in shown
