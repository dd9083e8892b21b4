"""Small files in exactly the formats in which the papers' data sets circulate."""

import csv
import json
import pickle

import numpy as np
import pytest

RANDOM = np.random.default_rng(0)


def write_mosi(folder):
    parts = {}
    for part, n in (("train", 12), ("valid", 5), ("test", 6)):
        audio = RANDOM.standard_normal((n, 50, 5)).astype(np.float32)
        audio[0, 3, 2] = -np.inf
        parts[part] = {
            "vision": RANDOM.standard_normal((n, 50, 20)).astype(np.float32),
            "text": RANDOM.standard_normal((n, 50, 30)).astype(np.float32),
            "audio": audio,
            "labels": RANDOM.uniform(-3, 3, (n, 1, 1)).astype(np.float32),
        }
    path = folder / "mosi_data.pkl"
    path.write_bytes(pickle.dumps(parts))
    return path


def write_iemocap(folder):
    h5py = pytest.importorskip("h5py")
    names = {"trn": 8, "val": 3, "tst": 4}
    utterances = {part: [f"Ses01F_{part}_{i}" for i in range(n)] for part, n in names.items()}
    for name in ("A", "V", "L", "target/1"):
        (folder / name).mkdir(parents=True)
    for file, width in (("A/comparE.h5", 130), ("V/denseface.h5", 342), ("L/bert_large.h5", 1024)):
        with h5py.File(folder / file, "w") as out:
            for name in (u for part in utterances.values() for u in part):
                out[name] = RANDOM.standard_normal((RANDOM.integers(4, 130), width)).astype(np.float32)
    with h5py.File(folder / "A/comparE_mean_std.h5", "w") as out:
        out["1/mean"], out["1/std"] = np.zeros(130), np.full(130, 2.0)
    for part, n in names.items():
        np.save(folder / f"target/1/{part}_label.npy", np.eye(4)[np.arange(n) % 4])
        np.save(folder / f"target/1/{part}_int2name.npy", np.array([[u.encode()] for u in utterances[part]]))
    return folder


def write_food(folder):
    image = pytest.importorskip("PIL.Image")
    words = ["tomato", "soup", "rice", "cake"]
    for part, n in (("train", 6), ("dev", 3), ("test", 3)):
        rows = []
        for i in range(n):
            path = f"images/{part}/{i}.jpg"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(RANDOM.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / path)
            rows.append(
                {
                    "id": i,
                    "text_tokens": words[: 1 + i % 4],
                    "img_path": path,
                    "label": ["pie", "soup"][i % 2],
                }
            )
        (folder / f"{part}.json").write_text(json.dumps(rows))
    return folder, words


def write_food_models(folder, words):
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    vit, bert = folder / "vit", folder / "bert"
    transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **small)).save_pretrained(vit)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **small)).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizer(str(bert / "vocab.txt"))
    tokenizer.save_pretrained(bert)
    return vit, bert


def write_brats(folder, *, nifti=False):
    h5py, nibabel = pytest.importorskip("h5py"), pytest.importorskip("nibabel")
    for part in ("train", "valid", "test"):
        image = RANDOM.standard_normal((4, 240, 240, 3)).astype(np.float32)
        label = np.zeros((240, 240, 3), dtype=np.uint8)
        label[100:140, 100:140, 1] = 4
        label[90:100, 90:100, 1:] = 2
        name = f"BraTS2021_{part}"
        (folder / part).mkdir(parents=True)
        if nifti:
            patient = folder / part / name
            patient.mkdir()
            for ending, volume in zip(("flair", "t1ce", "t1", "t2", "seg"), (*image, label), strict=True):
                volume = nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4))
                nibabel.save(volume, patient / f"{name}_{ending}.nii.gz")
        else:
            with h5py.File(folder / part / f"{name}.h5", "w") as out:
                out["image"], out["label"] = image, label
    return folder


def write_cremad(folder):
    image, soundfile = pytest.importorskip("PIL.Image"), pytest.importorskip("soundfile")
    emotions = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    with (folder / "stat.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[e] for e in emotions])
    (folder / "AudioWAV").mkdir()
    for part, n in (("train", 5), ("test", 2)):
        rows = [(f"100{i}_{part}", emotions[i % 6]) for i in range(n)]
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        for clip, _ in rows:
            soundfile.write(folder / "AudioWAV" / f"{clip}.wav", RANDOM.uniform(-1, 1, 4000), 4000)
            frames = folder / "Image-01-FPS" / clip
            frames.mkdir(parents=True)
            for i in range(3):
                pixels = RANDOM.integers(0, 255, (40, 30, 3), dtype=np.uint8)
                image.fromarray(pixels).save(frames / f"frame_{i}.jpg")
    return folder
