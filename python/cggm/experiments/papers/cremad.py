"""CREMA-D: six emotions, from voice and face, as OGM-GE prepares it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cggm import Classification

from .files import DataError, corrupt, existing, finite, inside, needs, read_image, read_text, reading
from .metrics import classification
from .recipe import Data, Recipe, Sample
from .resnet import ResNet18

AUDIO, FRAMES = "AudioWAV", "Image-01-FPS"
SIDE = 224
SECONDS, WINDOW, HOP = 3, 512, 353
RATES, CHANNELS = (1000, 192_000), 8
VALIDATION = 0.1  # share of the training clips: the set has no validation part of its own


class Clips(Dataset):
    """Log spectrogram `[1, 257, T]` and the middle frame `[3, side, side]` of each clip, and its emotion.

    Args:
        folder: with the sounds and the frames.
        rows: clip name and class number.
        side: of the images.
    """

    def __init__(self, folder: Path, rows: list[tuple[str, int]], side: int) -> None:
        self.folder, self.rows, self.side = folder, rows, side

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:
        clip, label = self.rows[i]
        sound = spectrogram(self._file(f"{AUDIO}/{clip}.wav"))
        return (sound, self._face(self._file(f"{FRAMES}/{clip}"))), torch.tensor(label)

    def _file(self, name: str) -> Path:
        return inside(self.folder, name, self.folder)

    def _face(self, folder: Path) -> Tensor:
        frames = sorted(existing(folder, "folder of frames").glob("*.jpg"))
        if not frames:
            raise DataError(f"no .jpg frame in {folder}")
        middle = frames[len(frames) // 2].relative_to(self.folder)
        pixels = torch.from_numpy(read_image(self._file(str(middle)), self.side)).permute(2, 0, 1) / 255
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        return (pixels - mean) / std


def spectrogram(path: Path) -> Tensor:
    """`[1, 257, T]`: logarithm of the amplitudes of three seconds, a shorter recording repeated.

    Raises:
        DataError: the file is missing or no sound.
    """
    soundfile = needs("soundfile")
    expected = f"a sound of {RATES[0]} to {RATES[1]} samples per second and at most {CHANNELS} channels"
    with reading(path, expected), soundfile.SoundFile(existing(path, "sound")) as file:
        rate, channels = file.samplerate, file.channels
        if not RATES[0] <= rate <= RATES[1] or channels > CHANNELS:
            raise corrupt(path, expected, f"{rate} per second, {channels} channels")
        wanted = SECONDS * rate
        samples = file.read(min(wanted, file.frames), dtype="float32", always_2d=True)  # no more than is used
    if not len(samples):
        raise corrupt(path, expected, "no samples")
    finite(samples, path, "samples")
    mono = torch.from_numpy(np.resize(samples.mean(1), wanted).clip(-1, 1))
    found = torch.stft(mono, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    return (found.abs() + 1e-7).log()[None]


def _table(path: Path, what: str) -> list[list[str]]:
    with reading(path, f"a {what} as CSV"):
        return list(csv.reader(io.StringIO(read_text(path, what), newline=""), strict=True))


def _emotions(path: Path) -> list[str]:
    emotions = [row[0] for row in _table(path, "list of emotions") if row]
    if not emotions or len(set(emotions)) != len(emotions):
        raise corrupt(path, "an emotion per line, each once", repr(emotions)[:200])
    return emotions


def _rows(path: Path, emotions: list[str]) -> list[tuple[str, int]]:
    rows = []
    for number, row in enumerate(_table(path, "list of clips"), 1):
        if len(row) < 2 or row[1] not in emotions:
            raise corrupt(path, f"a clip and one of {emotions} in each line", f"line {number} is {row}")
        inside(path.parent / AUDIO, row[0], path)
        rows.append((row[0], emotions.index(row[1])))
    if not rows:
        raise corrupt(path, "a list of clips", "no line")
    return rows


def read(path: Path, *, side: int = SIDE) -> Data:
    """The parts; a tenth of the training clips, always the same, is the validation part.

    Raises:
        DataError: a list is missing or holds something else.
    """
    emotions = _emotions(existing(path, "folder") / "stat.csv")
    train, test = (_rows(path / f"{part}.csv", emotions) for part in ("train", "test"))
    if len(train) < 2:
        raise corrupt(path / "train.csv", "two clips or more", "one")
    order = np.random.default_rng(0).permutation(len(train))
    held_out = max(1, round(VALIDATION * len(train)))
    validation, kept = [train[i] for i in order[:held_out]], [train[i] for i in order[held_out:]]
    return Data(*(Clips(path, rows, side) for rows in (kept, validation, test)))


class Encoder(nn.Module):
    """ResNet-18 and the mean over its map: `[B, channels, H, W] -> [B, 512]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.map = ResNet18(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return self.map(x).mean((2, 3))


class AudioVisualModel(nn.Module):
    """Two encoders, concatenated features, a linear head: `[B, 1, 257, T], [B, 3, side, side] -> [B, classes]`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": Encoder(1), "visual": Encoder(3)})
        self.head = nn.Linear(1024, classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.cat([self.encoders["audio"](audio), self.encoders["visual"](visual)], dim=1))


def build(path: Path, *, side: int = SIDE) -> Recipe:
    """OGM-GE's experiment: SGD 1e-3 with momentum, a tenth of that after 70 of 100 epochs, batches of 64.

    Args:
        path: the folder with `train.csv`, `test.csv`, `stat.csv`, `AudioWAV` and `Image-01-FPS`.
        side: of the images.
    """
    data = read(path, side=side)
    return Recipe(
        name="cremad",
        data=data,
        model=AudioVisualModel(len(_emotions(path / "stat.csv"))),
        encoders={m: f"encoders.{m}" for m in ("audio", "visual")},
        head="head",
        classifiers=None,
        task=Classification(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4),
        metrics=classification,
        classifier_group={"lr": 1e-3},
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 70, 0.1),
        epochs=100,
        clip=None,
    )
