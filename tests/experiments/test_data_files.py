"""Data sets that the user has as files, on small files in the same formats; and what `cggm data` says about them."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from cggm import cli
from cggm.experiments.compare import Comparison, run_compare
from cggm.experiments.datasets import sanity, utd_mhad
from cggm.experiments.datasets.registry import FROM_FILES, find_experiment
from cggm.experiments.experiment import Split, Splits

RANDOM = np.random.default_rng(0)


def write_views(path, widths, classes, rows=60):
    labels = np.sort(np.arange(rows) % classes)
    views = np.empty((1, len(widths)), dtype=object)
    for i, width in enumerate(widths):
        views[0, i] = RANDOM.standard_normal((width, rows)) + labels
        views[0, i][:, -1] = views[0, i][:, -2]  # the last row repeats the one before
    savemat(path, {"X": views, "gt": (labels + 1).astype(np.uint8)[:, None]})


def write_cub(folder):
    write_views(folder / "CUB.mat", (12, 7), 10)


def write_scene15(folder):
    write_views(folder / "scene15_mtv.mat", (5, 6, 4), 15)


def write_wiki(folder):
    arrays = {}
    for part, name, rows in (("tr", "train", 30), ("te", "test", 12)):
        text = RANDOM.random((rows, 9))
        arrays |= {f"I_{part}": RANDOM.random((rows, 8)), f"T_tfidf_{part}": text, f"T_{part}": text[:, :3]}
        lines = [f"text-{i}\tpicture-{i}\t{i % 10 + 1}\n" for i in range(rows)]
        (folder / f"{name}set_txt_img_cat.list").write_text("".join(lines))
    savemat(folder / "raw_features.mat", arrays)


def write_utd(folder):
    for kind in ("Inertial", "Skeleton"):
        (folder / kind).mkdir()
    for subject in range(1, 9):
        for action in (1, 2, 27):
            name = f"a{action}_s{subject}_t1"
            frames = int(RANDOM.integers(20, 40))
            savemat(folder / f"Inertial/{name}_inertial.mat", {"d_iner": RANDOM.random((3 * frames, 6))})
            savemat(folder / f"Skeleton/{name}_skeleton.mat", {"d_skel": RANDOM.random((20, 3, frames))})


WRITERS = {
    "cub": write_cub,
    "scene15": write_scene15,
    "wiki": write_wiki,
    "utd-mhad": write_utd,
    "utd-mhad-subjects": write_utd,
}


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


# what is refused -----------------------------------------------------------------------------------------------------


def cut_off(path):
    path.write_bytes(path.read_bytes()[:150])


def text(path):
    path.write_text("no matrix")


def change(path, **arrays):
    from scipy.io import loadmat

    kept = {name: value for name, value in loadmat(path).items() if name[0] != "_"} | arrays
    savemat(path, {name: value for name, value in kept.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("cub", "CUB.mat", lambda p: p.unlink(), "has no CUB.mat"),
        ("cub", "CUB.mat", cut_off, "not a MATLAB 5 file"),
        ("cub", "CUB.mat", text, "not a MATLAB 5 file"),
        ("cub", "CUB.mat", lambda p: change(p, gt=None), "no array 'gt', it has ['X']"),
        ("cub", "CUB.mat", lambda p: change(p, gt=np.full((60, 1), 11)), "classes from 1 to 10"),
        ("cub", "CUB.mat", lambda p: change(p, gt=np.full((59, 1), 1)), "must have 59 columns"),
        ("scene15", "scene15_mtv.mat", lambda p: write_views(p, (3, 4), 15), "shape [1, 3], found [1, 2]"),
        ("wiki", "raw_features.mat", lambda p: change(p, I_te=np.full((12, 8), np.nan)), "finite numbers"),
        ("wiki", "raw_features.mat", lambda p: change(p, I_te=np.ones((11, 8))), "has 11 pictures, 12 texts"),
        ("wiki", "testset_txt_img_cat.list", text, "line 1 must end with a subject"),
        ("wiki", "testset_txt_img_cat.list", lambda p: p.write_bytes(b"\xff"), "can't decode"),
        ("utd-mhad", "Skeleton/a2_s4_t1_skeleton.mat", lambda p: p.unlink(), "no Skeleton/a2_s4_t1_skeleton.mat"),
        ("utd-mhad", "Inertial/a2_s4_t1_inertial.mat", lambda p: change(p, d_iner=np.ones((9, 5))), "shape [None, 6]"),
        ("utd-mhad", "Inertial/a2_s4_t1_inertial.mat", lambda p: p.rename(p.parent / "a28_s4_t1_inertial.mat"), "name"),
    ],
)  # fmt: skip
def test_a_damaged_file_gets_one_line_that_names_it(name, file, damage, message, tmp_path, capsys):
    WRITERS[name](tmp_path)
    damage(tmp_path / file)
    assert cli.main(["data", name, "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert str(tmp_path) in error


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
