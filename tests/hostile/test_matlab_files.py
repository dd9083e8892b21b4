"""Broken data of `cggm data` and `cggm compare`: exit status 2 and one line with the file, what it needs and has."""

import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from cggm import cli
from matlab_files import WRITERS, write_views

NAN = float("nan")


def text(path):
    path.write_text("no matrix")


def cut(path):
    path.write_bytes(path.read_bytes()[:150])


def folder(path):
    path.unlink()
    path.mkdir()


def fill(content):
    return lambda path: path.write_bytes(content)


def change(**arrays):
    """Replace arrays of a file; None removes one, a function is given the one that is there."""

    def damage(path):
        kept = {name: value for name, value in loadmat(path).items() if name[0] != "_"}
        kept |= {name: value(kept[name]) if callable(value) else value for name, value in arrays.items()}
        savemat(path, {name: value for name, value in kept.items() if value is not None})

    return damage


def view(function):
    """Change the first of the views."""

    def changed(views):
        views[0, 0] = function(views[0, 0])
        return views

    return change(X=changed)


def put(value):
    def changed(array):
        array = array.astype(type(value)) if isinstance(value, complex) else array.astype(float)
        array.flat[3] = value
        return array

    return changed


def claim(size):
    """A file whose compressed part says that it holds so many bytes."""
    inner = np.array([9, size], "<u4").tobytes() + bytes(64)
    packed = zlib.compress(inner)
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    return fill(head + np.array([15, len(packed)], "<u4").tobytes() + packed)


def line(function):
    return lambda path: path.write_text("\n".join(function(path.read_text().splitlines())))


def renamed(name):
    return lambda path: path.rename(path.parent / name)


SEVEN = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(64)
SENSOR, JOINTS = "Inertial/a2_s4_t1_inertial.mat", "Skeleton/a2_s4_t1_skeleton.mat"
FEATURES, LIST = "raw_features.mat", "testset_txt_img_cat.list"
#: Data set, file, damage, words of the message.
CASES = [
    *((name, file, damage, "not a MATLAB 5 file")
      for name, file in (("cub", "CUB.mat"), ("scene15", "scene15_mtv.mat"), ("wiki", FEATURES), ("utd-mhad", SENSOR))
      for damage in (cut, text, folder, fill(b""), fill(b"\0" * 4000), fill(SEVEN), claim(2**31), claim(2**32 - 1),
                     fill(b"PK\3\4" + bytes(300)))),
    ("cub", "CUB.mat", lambda p: p.unlink(), "has no CUB.mat"),
    ("cub", "CUB.mat", change(gt=None), "no array 'gt', it has ['X']"),
    ("cub", "CUB.mat", change(X=None), "no array 'X', it has ['gt']"),
    ("cub", "CUB.mat", change(gt=np.full((60, 1), 11)), "classes from 1 to 10"),
    ("cub", "CUB.mat", change(gt=np.full((60, 1), 0)), "classes from 1 to 10"),
    ("cub", "CUB.mat", change(gt=np.full((60, 1), -1)), "classes from 1 to 10"),
    ("cub", "CUB.mat", change(gt=np.full((59, 1), 1)), "must have 59 columns"),
    ("cub", "CUB.mat", change(gt=np.full((1, 60), 1)), "must have shape [None, 1], found [1, 60]"),
    ("cub", "CUB.mat", change(gt=put(1.5)), "'gt' must hold classes from 1 to 10"),
    ("cub", "CUB.mat", change(gt=put(NAN)), "'gt' must hold finite numbers"),
    ("cub", "CUB.mat", change(gt=put(1j)), "'gt' must hold finite numbers"),
    ("cub", "CUB.mat", change(gt=np.array([["a"]] * 60)), "'gt' must"),
    ("cub", "CUB.mat", change(gt=csc_matrix(np.ones((60, 1)))), "'gt' must"),
    ("cub", "CUB.mat", change(gt={"a": 1}), "'gt' must"),
    ("cub", "CUB.mat", change(gt=lambda gt: np.array([[x] for x in gt.ravel()], dtype=object)), "'gt' must"),
    ("cub", "CUB.mat", change(X=np.ones((1, 2))), "'image' must"),
    ("cub", "CUB.mat", change(X=lambda x: x[:, :1]), "must have shape [1, 2], found [1, 1]"),
    ("cub", "CUB.mat", change(X=lambda x: x.T), "must have shape [1, 2], found [2, 1]"),
    ("cub", "CUB.mat", view(put(NAN)), "'image' must hold finite numbers"),
    ("cub", "CUB.mat", view(put(np.inf)), "'image' must hold finite numbers"),
    ("cub", "CUB.mat", view(put(1j)), "'image' must hold finite numbers"),
    ("cub", "CUB.mat", view(lambda x: "text"), "'image' must"),
    ("cub", "CUB.mat", view(lambda x: {"a": 1}), "'image' must"),
    ("cub", "CUB.mat", view(csc_matrix), "'image' must"),
    ("cub", "CUB.mat", view(lambda x: x[:, 1:]), "view 'image' must have 60 columns"),
    ("cub", "CUB.mat", view(lambda x: x.T), "view 'image' must have 60 columns"),
    ("cub", "CUB.mat", view(lambda x: x[:0]), "'image' must"),
    ("cub", "CUB.mat", view(lambda x: x.ravel()), "view 'image' must have 60 columns"),
    ("scene15", "scene15_mtv.mat", lambda p: write_views(p, (3, 4), 15), "shape [1, 3], found [1, 2]"),
    ("scene15", "scene15_mtv.mat", lambda p: write_views(p, (3, 4, 5, 6), 15), "shape [1, 3], found [1, 4]"),
    ("wiki", FEATURES, change(I_te=None), "no array 'I_te'"),
    ("wiki", FEATURES, change(I_te=np.full((12, 8), NAN)), "'I_te' must hold finite numbers"),
    ("wiki", FEATURES, change(I_te=np.ones((12, 8), complex)), "'I_te' must hold finite numbers"),
    ("wiki", FEATURES, change(I_te=np.array([["a"] * 8] * 12)), "'I_te' must"),
    ("wiki", FEATURES, change(I_te=csc_matrix(np.ones((12, 8)))), "'I_te' must"),
    ("wiki", FEATURES, change(I_te=np.ones((11, 8))), "has 11 pictures, 12 texts"),
    ("wiki", FEATURES, change(I_te=np.ones((12, 7))), "rows of one width, found [8, 7]"),
    ("wiki", FEATURES, change(I_te=np.ones((12, 8, 1, 2))), "'I_te' must have shape [None, None]"),
    ("wiki", FEATURES, change(I_tr=np.ones((30, 0)), I_te=np.ones((12, 0))), "'I_tr' must"),
    ("wiki", LIST, lambda p: p.unlink(), f"has no {LIST}"),
    ("wiki", LIST, text, "line 1 must end with a subject"),
    ("wiki", LIST, fill(b""), "0 lines"),
    ("wiki", LIST, fill(b"\xff"), "can't decode"),
    ("wiki", LIST, fill("a\tb\t1\n".encode("utf-16")), "can't decode"),
    ("wiki", LIST, folder, LIST),
    ("wiki", LIST, line(lambda lines: lines[1:]), "11 lines, but raw_features.mat has 12"),
    ("wiki", LIST, line(lambda lines: ["a\tb\t0", *lines[1:]]), "line 1 must end with a subject from 1 to 10, not '0'"),
    ("wiki", LIST, line(lambda lines: ["a\tb\t11", *lines[1:]]), "line 1 must end with a subject"),
    ("wiki", LIST, line(lambda lines: [*lines[:3], "a\tb\t-1", *lines[4:]]), "line 4 must end with a subject"),
    ("wiki", LIST, line(lambda lines: ["a\tb\t1.0", *lines[1:]]), "line 1 must end with a subject"),
    ("wiki", LIST, line(lambda lines: ["a\tb\t²", *lines[1:]]), "line 1 must end with a subject"),
    ("wiki", LIST, line(lambda lines: ["a\tb\t" + "9" * 5000, *lines[1:]]), "line 1 must end with a subject"),
    ("wiki", LIST, line(lambda lines: ["a b 1", *lines[1:]]), "line 1 must end with a subject"),
    ("utd-mhad", JOINTS, lambda p: p.unlink(), "no Skeleton/a2_s4_t1_skeleton.mat"),
    ("utd-mhad", JOINTS, change(d_skel=None), "no array 'd_skel'"),
    ("utd-mhad", JOINTS, change(d_skel=lambda x: x[:19]), "must have shape [20, 3, None], found [19, 3"),
    ("utd-mhad", JOINTS, change(d_skel=lambda x: x[..., 0]), "must have shape [20, 3, None], found [20, 3]"),
    ("utd-mhad", JOINTS, change(d_skel=lambda x: x[..., :0]), "'d_skel' must"),
    ("utd-mhad", JOINTS, change(d_skel=put(NAN)), "'d_skel' must hold finite numbers"),
    ("utd-mhad", SENSOR, change(d_iner=np.ones((9, 5))), "shape [None, 6]"),
    ("utd-mhad", SENSOR, change(d_iner=np.ones((0, 6))), "'d_iner' must"),
    ("utd-mhad", SENSOR, change(d_iner=put(np.inf)), "'d_iner' must hold finite numbers"),
    ("utd-mhad", SENSOR, change(d_iner=put(1j)), "'d_iner' must hold finite numbers"),
    ("utd-mhad", SENSOR, renamed("a28_s4_t1_inertial.mat"), "the name must be"),
    ("utd-mhad", SENSOR, renamed("a0_s4_t1_inertial.mat"), "the name must be"),
    ("utd-mhad", SENSOR, renamed("ab_s4_t1_inertial.mat"), "the name must be"),
    ("utd-mhad", SENSOR, renamed("a2_s4_t1b_inertial.mat"), "the name must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "damage", "words"), CASES)
def test_a_damaged_file_gets_one_line_that_names_it(name, file, damage, words, tmp_path, capsys):
    WRITERS[name](tmp_path)
    damage(tmp_path / file)
    assert cli.main(["data", name, "--data", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown[:-1].isprintable()
    assert words in shown
    assert str(tmp_path) in shown
    assert len(shown) < 700
