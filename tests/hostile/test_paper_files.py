"""Broken and hostile data for the papers' experiments: one line that names the file, what was expected and found."""

import gzip
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import paper_damage as bad
from cggm.experiments.papers import brats, cremad, food101, iemocap, mosi
from paper_files import write_brats, write_cremad, write_food, write_iemocap, write_mosi


def read_food(folder):
    parts, labels = food101.read(folder)
    tokens = lambda *_, **__: dict.fromkeys(("input_ids", "attention_mask"), torch.ones(1, 2))  # noqa: E731
    return [food101.Recipes(folder, rows, labels, tokens, 32) for rows in parts.values()]


WRITE = {
    "food101": write_food,
    "mosi": write_mosi,
    "iemocap": write_iemocap,
    "brats": write_brats,
    "nifti": lambda folder: write_brats(folder, nifti=True),
    "cremad": write_cremad,
}
READ = {
    "food101": read_food,
    "mosi": mosi.read,
    "iemocap": lambda folder: iemocap.read(folder, 1),
    "brats": brats.read,
    "nifti": brats.read,
    "cremad": lambda folder: cremad.read(folder, side=32),
}


def read_all(name, data):
    return [part[i] for part in READ[name](data) for i in range(len(part))]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    made = {}

    def original(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            WRITE[name](made[name])
        return made[name]

    return original


JPG, SOUND, FACES = "images/train/0.jpg", "AudioWAV/1001_train.wav", "Image-01-FPS/1001_train"
PATIENT, VOLUME = "train/BraTS2021_train.h5", "train/BraTS2021_train/BraTS2021_train_t1.nii.gz"
SEG = VOLUME.replace("t1", "seg")
TEXT, SCALE, LABELS, NAMES = (
    "L/bert_large.h5",
    "A/comparE_mean_std.h5",
    "target/1/trn_label.npy",
    "target/1/trn_int2name.npy",
)
FIRST = "Ses01F_trn_0"
LATIN = "é".encode("latin1")

#: experiment, file, damage (bytes: the new content), words of the message
CASES = [
    ("food101", "train.json", b"", "Expecting value"),
    ("food101", "train.json", b"[]", "list of recipes"),
    ("food101", "train.json", b"{}", "list of recipes"),
    ("food101", "train.json", b"[1]", "entry 0 of type int"),
    ("food101", "train.json", b"[{" , "JSONDecodeError"),
    ("food101", "train.json", b"[" * 200_000, "RecursionError"),
    ("food101", "train.json", b"[" + b"9" * 5000 + b"]", "ValueError"),
    ("food101", "train.json", b'["' + LATIN + b'"]', "UTF-8"),
    ("food101", "train.json", "[]".encode("utf-16"), "UTF-8"),
    ("food101", "train.json", bad.folder, "no file"),
    ("food101", "train.json", bad.cut, "JSON"),
    ("food101", "train.json", bad.row(label=None), "entry 0 has no ['label']"),
    ("food101", "train.json", bad.row(label=3), "name as label of entry 0"),
    ("food101", "train.json", bad.row(label=["pie"]), "name as label of entry 0"),
    ("food101", "dev.json", bad.row(label="stew"), "train.json's classes"),
    ("food101", "train.json", bad.row(text_tokens="tomato soup"), "list of words"),
    ("food101", "train.json", bad.row(text_tokens=["tomato", 1]), "list of words"),
    ("food101", "train.json", bad.row(img_path=7), "inside the data folder, found 7"),
    ("food101", "train.json", bad.row(img_path=""), "inside the data folder, found ''"),
    ("food101", "train.json", bad.row(img_path="/etc/passwd"), "inside the data folder, found '/etc/passwd'"),
    ("food101", "train.json", bad.row(img_path="images/../../x.jpg"), "inside the data folder"),
    ("food101", "train.json", bad.row(img_path="a\0b"), "inside the data folder"),
    ("food101", "train.json", bad.row(img_path="x" * 5000), "inside the data folder"),
    ("food101", JPG, bad.linked, "symbolic link that leaves it"),
    ("food101", "images", bad.linked, "symbolic link that leaves it"),
    ("food101", JPG, os.remove, "no image at"),
    ("food101", JPG, bad.folder, "expected an image"),
    ("food101", JPG, b"", "expected an image"),
    ("food101", JPG, bad.cut, "expected an image"),
    ("food101", JPG, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "expected an image"),
    ("food101", JPG, bad.png(9, 9), "expected an image"),
    ("food101", JPG, bad.png(60_000, 60_000), "DecompressionBomb"),
    ("mosi", "mosi_data.pkl", b"", "exhausted"),
    ("mosi", "mosi_data.pkl", bad.cut, "bytes"),
    ("mosi", "mosi_data.pkl", pickle.dumps([1]), "found one of type list"),
    ("mosi", "mosi_data.pkl", pickle.dumps({"train": 1, "valid": 1, "test": 1}), "dictionary as train"),
    ("mosi", "mosi_data.pkl", bad.array("train", "text", lambda x: x.tolist()), "text of train, found one"),
    ("mosi", "mosi_data.pkl", bad.array("train", "text", lambda x: x.astype(object)), "dtype 'O8'"),
    ("mosi", "mosi_data.pkl", bad.array("valid", "text", lambda x: x.astype(str)), "dtype 'U"),
    ("mosi", "mosi_data.pkl", bad.array("train", "text", lambda x: x.astype(complex)), "dtype 'c16'"),
    ("mosi", "mosi_data.pkl", bad.array("train", "text", lambda x: x[1:]), "the shapes"),
    ("mosi", "mosi_data.pkl", bad.array("train", "text", lambda x: x[..., 0]), "the shapes"),
    ("mosi", "mosi_data.pkl", bad.array("test", "text", lambda x: x[..., 1:]), "same lengths and widths"),
    ("mosi", "mosi_data.pkl", bad.array("train", "labels", lambda x: x[:, 0]), "labels [n, 1, 1]"),
    ("mosi", "mosi_data.pkl", bad.array("train", "labels", lambda x: np.repeat(x, 2, 1)), "labels [n, 1, 1]"),
    ("mosi", "mosi_data.pkl", bad.array("train", "labels", bad.put(np.nan, 2)), "finite labels of train"),
    ("mosi", "mosi_data.pkl", bad.array("test", "text", bad.put(np.nan, 1, 2, 3)), "finite text of test"),
    ("mosi", "mosi_data.pkl", bad.array("test", "audio", bad.put(np.inf, 1, 2, 3)), "finite audio of test"),
    ("iemocap", TEXT, b"", "HDF5"),
    ("iemocap", TEXT, bad.cut, "HDF5"),
    ("iemocap", TEXT, bad.folder, "HDF5"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda *_: None), f"none for '{FIRST}' (1 are missing)"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: v[:, 1:]), "[time, 1024]"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: v[:0]), "[time, 1024]"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: v[0]), "[time, 1024]"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: v * np.nan), "finite values"),
    ("iemocap", TEXT, bad.h5(FIRST, "text"), "expected numbers"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: f.create_group(FIRST) and None), "expected numbers"),
    ("iemocap", TEXT, bad.external_link(FIRST), "ExternalLink"),
    ("iemocap", TEXT, bad.soft_link(FIRST), "SoftLink"),
    ("iemocap", TEXT, bad.virtual(FIRST), "other files"),
    ("iemocap", TEXT, bad.raw_elsewhere(FIRST), "other files"),
    ("iemocap", TEXT, bad.vast(FIRST), "at most"),
    ("iemocap", TEXT, bad.vast_chunk(FIRST), "in chunks of (1, 536870912)"),
    ("iemocap", SCALE, b"", "HDF5"),
    ("iemocap", SCALE, bad.h5("1/mean", lambda *_: None), "'1/mean'"),
    ("iemocap", SCALE, bad.h5("1/mean", lambda f, v: v[1:]), "[130]"),
    ("iemocap", SCALE, bad.h5("1/std", lambda f, v: -v), "std from 0 on"),
    ("iemocap", SCALE, bad.h5("1/std", lambda f, v: v * np.nan), "finite values"),
    ("iemocap", SCALE, bad.external_link("1/std"), "ExternalLink"),
    ("iemocap", LABELS, b"", ".npy file with labels"),
    ("iemocap", LABELS, bad.cut, ".npy file with labels"),
    ("iemocap", LABELS, pickle.dumps([1]), ".npy file with labels"),
    ("iemocap", LABELS, bad.npy_of_shape((10**12, 4)), ".npy file with labels"),
    ("iemocap", LABELS, bad.npy(lambda x: x.astype(object)), ".npy file with labels"),
    ("iemocap", LABELS, bad.npy(lambda x: x.astype(str)), "numbers as labels"),
    ("iemocap", LABELS, bad.npy(bad.put(np.nan, 0)), "finite labels"),
    ("iemocap", LABELS, bad.npy(lambda x: x[:, :3]), "one-hot"),
    ("iemocap", LABELS, bad.npy(lambda x: x.argmax(1)), "one-hot"),
    ("iemocap", LABELS, bad.npy(bad.put(0, 0)), "one-hot"),
    ("iemocap", LABELS, bad.npy(lambda x: x[:0]), "0 names"),
    ("iemocap", NAMES, bad.npy(lambda x: x[1:]), "8 names"),
    ("iemocap", NAMES, bad.npy(lambda x: np.arange(8)), "8 names"),
    ("iemocap", NAMES, bad.npy(lambda x: x[0, 0]), "8 names"),
    ("iemocap", NAMES, bad.npy(bad.put(LATIN, 0)), "UTF-8"),
    ("iemocap", TEXT, bad.h5(FIRST, lambda f, v: np.full((4, 1024), 1 + 1j)), "expected numbers"),
    ("brats", PATIENT, bad.cut, "HDF5"),
    ("brats", PATIENT, bad.h5("label", lambda *_: None), "'label'"),
    ("brats", PATIENT, bad.h5("image", lambda f, v: v[:3]), "[4, H, W, Z]"),
    ("brats", PATIENT, bad.h5("image", 3.0), "ValueError"),
    ("brats", PATIENT, bad.h5("label", lambda f, v: v[1:]), "[4, H, W, Z]"),
    ("brats", PATIENT, bad.h5("label", lambda f, v: v + 0.5), "labels 0, 1, 2 and 4"),
    ("brats", PATIENT, bad.h5("label", lambda f, v: v * np.nan), "finite labels"),
    ("brats", PATIENT, bad.h5("label", lambda f, v: v + 5), "labels 0, 1, 2 and 4"),
    ("brats", PATIENT, bad.h5("label", lambda f, v: v * 0), "labelled slices"),
    ("brats", PATIENT, bad.h5("label", "text"), "expected numbers"),
    ("brats", PATIENT, bad.h5("image", lambda f, v: v * np.inf), "finite intensities"),
    ("brats", PATIENT, bad.external_link("image"), "ExternalLink"),
    ("brats", PATIENT, bad.virtual("image"), "other files"),
    ("brats", PATIENT, bad.raw_elsewhere("image"), "other files"),
    ("brats", PATIENT, bad.vast("image"), "at most"),
    ("nifti", VOLUME, os.remove, "no volume at"),
    ("nifti", VOLUME, b"", "NIfTI"),
    ("nifti", VOLUME, bad.cut, "NIfTI"),
    ("nifti", VOLUME, b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 900, "NIfTI"),
    ("nifti", VOLUME, gzip.compress(b"nothing" * 100), "NIfTI"),
    ("nifti", VOLUME, bad.vast_volume, "(32767, 32767, 32767)"),
    ("nifti", VOLUME, bad.volume(lambda x: x[1:]), "five volumes of one shape"),
    ("nifti", VOLUME, bad.volume(bad.put(np.nan, 0)), "finite values"),
    ("nifti", SEG, bad.volume(lambda x: x + 9), "labels 0, 1, 2 and 4"),
    ("cremad", "stat.csv", b"", "an emotion per line"),
    ("cremad", "stat.csv", b"NEU\nNEU\n", "each once"),
    ("cremad", "stat.csv", LATIN, "UTF-8"),
    ("cremad", "stat.csv", b'NEU\n"HAP', "unexpected end of data"),
    ("cremad", "train.csv", b"", "no line"),
    ("cremad", "train.csv", b"1001_train,NEU\n", "two clips"),
    ("cremad", "train.csv", b"1001_train\n", "line 1"),
    ("cremad", "train.csv", b"clip,emotion\n", "line 1"),
    ("cremad", "train.csv", LATIN + b",NEU\n", "UTF-8"),
    ("cremad", "train.csv", b"x" * 200_000 + b",NEU\n", "field larger than field limit"),
    ("cremad", "train.csv", b"a\0b,NEU\n", "train.csv"),
    ("cremad", "train.csv", b"../../x,NEU\n", "inside the data folder, found '../../x'"),
    ("cremad", "train.csv", b"/etc/passwd,NEU\n", "inside the data folder, found '/etc/passwd'"),
    ("cremad", "train.csv", b",NEU\n", "inside the data folder, found ''"),
    ("cremad", SOUND, bad.linked, "symbolic link that leaves it"),
    ("cremad", FACES, bad.linked, "symbolic link that leaves it"),
    ("cremad", f"{FACES}/frame_1.jpg", bad.linked, "symbolic link that leaves it"),
    ("cremad", f"{FACES}/frame_1.jpg", b"", "expected an image"),
    ("cremad", FACES, lambda path: [p.unlink() for p in path.iterdir()], "no .jpg frame in"),
    ("cremad", SOUND, os.remove, "no sound at"),
    ("cremad", SOUND, b"", "expected a sound"),
    ("cremad", SOUND, bad.wav(samples=b""), "no samples"),
    ("cremad", SOUND, bad.wav(rate=2**31 - 1), "2147483647 per second"),
    ("cremad", SOUND, bad.wav(rate=20), "20 per second"),
    ("cremad", SOUND, bad.wav(channels=1000), "1000 channels"),
    ("cremad", SOUND, bad.wav(channels=0), "expected a sound"),
    ("cremad", SOUND, bad.wav(kind=99), "expected a sound"),
    ("cremad", SOUND, bad.wav()[:30], "expected a sound"),
    ("cremad", SOUND, bad.long_flac, "expected a sound"),
    ("cremad", SOUND, bad.not_finite_sound, "finite samples"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "damage", "words"), CASES)
def test_bad_data_are_one_clear_line(name, file, damage, words, originals, tmp_path):
    data = shutil.copytree(originals(name), tmp_path / "data")
    read_all(name, data)
    if isinstance(damage, bytes):
        (data / file).write_bytes(damage)
    else:
        damage(data / file)
    with pytest.raises(ValueError, match=re.escape(f"data: {data}") + "|data: no ") as raised:
        read_all(name, data)
    message = str(raised.value)
    assert words in message
    assert str(data) in message
    assert message.isprintable()
    assert len(message) < 1100
    assert re.search("expected .*, found .|no .* (at|in) /", message), message
