"""Small files in exactly the formats of the data sets that `cggm data` reads from files."""

import numpy as np
import pytest

savemat = pytest.importorskip("scipy.io").savemat

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
