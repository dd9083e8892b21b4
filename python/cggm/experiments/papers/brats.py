"""BraTS 2021: tumour segmentation from four MRI sequences, slice by slice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from cggm import Segmentation

from .files import ARRAY_VALUES, DataError, corrupt, existing, finite, h5_dataset, needs, open_h5, reading
from .metrics import dice
from .recipe import Data, Recipe, Sample
from .resnet import ResNet18

SEQUENCES = ("flair", "t1ce", "t1", "t2")
PARTS = ("train", "valid", "test")
CROP = 160
WARM_UP, EPOCHS = 10, 75
RATES = (4e-4, 0.01, 0.001)  # first, highest, last
CLASSES = 4


class Slices(Dataset):
    """All slices with tumour of some patients: `[1, 160, 160]` per sequence, labels `[160, 160]` in 0 to 3.

    Every patient is read once to find them and the intensities within the brain; after that, single slices are.

    Args:
        patients: files, or folders of NIfTI volumes.
    """

    def __init__(self, patients: list[Path]) -> None:
        self.patients = patients
        self.slices: list[tuple[int, int]] = []
        self.scales: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for number, patient in enumerate(patients):
            image, label = read_patient(patient)
            self.slices += [(number, int(z)) for z in np.flatnonzero(label.any((0, 1)))]
            self.scales.append(_brain_scale(image))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> Sample:
        number, z = self.slices[i]
        image, label = read_patient(self.patients[number], slice(z, z + 1))
        mean, std = (values[:, None, None] for values in self.scales[number])
        image = image[..., 0]  # [4, H, W]
        image = np.where(image != 0, (image - mean) / std, 0)
        planes = torch.from_numpy(_crop(image))  # [4, 160, 160]
        return tuple(plane[None] for plane in planes), torch.from_numpy(_crop(label[..., 0]))


def _brain_scale(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation `[4]` of each sequence where it is not 0."""
    brains = [values[values != 0] for values in image]
    found = [(b.mean(), b.std() + 1e-8) if b.size else (0.0, 1.0) for b in brains]
    mean, std = np.array(found, dtype=np.float32).T
    return mean, std


def _crop(plane: NDArray) -> NDArray:
    """The middle 160 × 160 of `[..., H, W]`, padded with zeros if it is smaller."""
    lacking = [max(0, CROP - size) for size in plane.shape[-2:]]
    around = [(0, 0)] * (plane.ndim - 2) + [(n // 2, n - n // 2) for n in lacking]
    plane = np.pad(plane, around)
    top, left = ((size - CROP) // 2 for size in plane.shape[-2:])
    return np.ascontiguousarray(plane[..., top : top + CROP, left : left + CROP])


def read_patient(path: Path, slices: slice = slice(None)) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A patient's sequences `[4, H, W, Z]` and labels `[H, W, Z]`, 4 becoming 3.

    Args:
        path: an `.h5` file with `image` and `label`, or a folder with `*_flair.nii.gz` and so on.
        slices: which of the Z slices.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    image, label = _read_volumes(path, slices) if path.is_dir() else _read_h5(path, slices)
    if image.ndim != 4 or len(image) != 4 or image.shape[1:] != label.shape:
        shapes = f"image {image.shape}, label {label.shape}"
        raise corrupt(path, "image [4, H, W, Z] and label [H, W, Z]", shapes)
    finite(image, path, "intensities")
    if not np.isin(finite(label, path, "labels"), range(5)).all():
        raise corrupt(path, "the labels 0, 1, 2 and 4", np.unique(label)[:8])
    return image, np.where(label == 4, 3, label).astype(np.int64)


def _read_h5(path: Path, slices: slice) -> tuple[NDArray[np.float32], NDArray]:
    with open_h5(path, "image and label") as file:
        image, label = (h5_dataset(file, name, path) for name in ("image", "label"))
        return np.asarray(image[..., slices], dtype=np.float32), label[..., slices]


def _read_volumes(path: Path, slices: slice) -> tuple[NDArray[np.float32], NDArray]:
    nibabel = needs("nibabel")
    volumes = []
    for ending in (*SEQUENCES, "seg"):
        found = sorted(path.glob(f"*_{ending}.nii.gz"))
        file = existing(found[0] if found else path / f"{path.name}_{ending}.nii.gz", "volume")
        with reading(file, f"a NIfTI volume of at most {ARRAY_VALUES} values"):
            stored = nibabel.load(file).dataobj
            if math.prod(stored.shape) > ARRAY_VALUES:
                raise ValueError(f"the shape {stored.shape}")
            volumes.append(finite(np.asarray(stored[..., slices]), file, "values").astype(np.float32))
    if len({volume.shape for volume in volumes}) != 1:
        raise corrupt(path, "five volumes of one shape", [volume.shape for volume in volumes])
    return np.stack(volumes[:4]), volumes[4]


def read(path: Path) -> Data:
    """The three parts, from the folders `train`, `valid` and `test` of patients.

    Raises:
        ValueError: a folder is missing, or holds no patient.
    """
    parts = []
    for part in PARTS:
        folder = existing(path / part, "folder of patients")
        with reading(folder, "a folder of patients"):
            patients = sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix in (".h5", ".hdf5"))
        if not patients:
            raise DataError(f"no patient (.h5 file or folder of .nii.gz volumes) in {folder}")
        parts.append(Slices(patients))
        if not parts[-1].slices:
            raise corrupt(folder, "a patient with labelled slices", f"none in {len(patients)} patients")
    return Data(*parts)


class Encoder(nn.Module):
    """DeepLab's kind: a dense ResNet-18, then convolutions at several rates: `[B, 1, H, W] -> [B, 64, H/8, W/8]`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.backbone = ResNet18(1, dense=True)
        self.pyramid = nn.ModuleList(
            nn.Conv2d(512, width, 1 if rate == 1 else 3, padding=rate * (rate > 1), dilation=rate)
            for rate in (1, 6, 12, 18)
        )
        self.output = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map."""
        features = self.backbone(x)
        return self.output(torch.cat([layer(features) for layer in self.pyramid], dim=1).relu())


class SegmentationModel(nn.Module):
    """Four encoders, fusion of their maps, and a head whose output is resized: `4 × [B, 1, H, W] -> [B, 4, H, W]`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: Encoder(width) for name in SEQUENCES})
        self.fusion = nn.Sequential(
            nn.ReLU(), nn.Conv2d(4 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, *sequences: Tensor) -> Tensor:
        """Logits of every pixel."""
        maps = [encoder(x) for encoder, x in zip(self.encoders.values(), sequences, strict=True)]
        logits = self.head(self.fusion(torch.cat(maps, dim=1)))
        return F.interpolate(logits, sequences[0].shape[-2:], mode="bilinear", align_corners=False)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up over 10 epochs from 4e-4 to 0.01, then a cosine down to 0.001."""
    first, highest, last = RATES
    lr = torch.optim.lr_scheduler
    warm = lr.LinearLR(optimizer, first / highest, 1.0, WARM_UP)
    cosine = lr.CosineAnnealingLR(optimizer, EPOCHS - WARM_UP, last)
    return lr.SequentialLR(optimizer, [warm, cosine], [WARM_UP])


def build(path: Path) -> Recipe:
    """The paper's experiment: SGD with warm-up and cosine, batches of 64, 75 epochs, no clipping, ρ 1, λ 0.1.

    Args:
        path: the folder with `train`, `valid` and `test`.
    """
    return Recipe(
        name="brats",
        data=read(path),
        model=SegmentationModel(),
        encoders={name: f"encoders.{name}" for name in SEQUENCES},
        head="head",
        classifiers=None,
        task=Segmentation(
            class_weights=(0.2, 0.3, 0.25, 0.25), regions=((1, 2, 3), (1, 3), (3,)), released=True
        ),
        optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=RATES[1], momentum=0.9, weight_decay=3e-4
        ),
        metrics=dice,
        classifier_group={"lr": 6e-3},
        scheduler=schedule,
        predict=lambda logits: logits.argmax(1),
        epochs=EPOCHS,
        clip=None,
        rho=1.0,
        lam=0.1,
    )
