"""AV-digits: spoken and handwritten digits, paired by class, with noise on both, so that a model needs both.

The recordings are the Free Spoken Digit Dataset (CC BY-SA 4.0, see `data/SPOKEN_DIGITS_LICENSE.txt`), the images
scikit-learn's copy of the UCI handwritten digits. Both are split before they are paired, so no recording and no image
is in two parts.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import models
from .experiment import Experiment, Split, Splits
from .splitting import split_rows

FRAMES = 32
DIGITS = 10
IMAGES_SPLIT = (1000, 297, 500)
RECORDINGS_SPLIT = (2000, 400, 600)
PAIRS = (1200, 400, 1000)


class Noise(NamedTuple):
    """Standard deviations of the noise, and the share of the images' energy that is removed before it is added."""

    image: float
    audio: float
    projected_out: float = 0.0


NOISE = {
    "demo": Noise(image=1.0, audio=0.7),
    "noisier": Noise(image=1.0, audio=1.2),
    "pca": Noise(image=0.5, audio=1.2, projected_out=0.75),
}


@functools.cache
def spoken_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features `[3000, 13, 32]` of the recordings, standardized per coefficient, and their digits `[3000]`.

    Recordings are cut to 32 frames, or padded with zeros, which are the coefficients' mean.
    """
    path = resources.files(__package__) / "data" / "spoken_digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        frames, lengths, digits = (archive[key] for key in ("frames", "lengths", "digits"))
    frames = frames.astype(np.float32)  # [F, 13]
    frames = (frames - frames.mean(0)) / frames.std(0)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    audio = np.zeros((len(lengths), frames.shape[1], FRAMES), np.float32)
    for recording, start, length in zip(audio, starts, np.minimum(lengths, FRAMES), strict=True):
        recording[:, :length] = frames[start : start + length].T
    return audio, digits.astype(np.int64)


@functools.cache
def written_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images `[1797, 64]` in `[0, 1]` and their digits `[1797]`."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), digits.astype(np.int64)


def pair_rows(
    images: NDArray[np.int64], recordings: NDArray[np.int64], pairs: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of images and of recordings of the same digit, drawn with replacement, and these digits.

    Args:
        images: `[I]`, the digit of each image.
        recordings: `[R]`, the digit of each recording.
        pairs: number of pairs; the counts of two digits differ by at most one.
        generator: source of the random numbers.

    Raises:
        ValueError: a digit has no image or no recording.

    >>> digits = np.arange(10)
    >>> image_rows, recording_rows, paired = pair_rows(digits, digits[::-1], 20, np.random.default_rng(0))
    >>> bool((image_rows == paired).all()), bool((recording_rows == 9 - paired).all())
    (True, True)
    """
    digits = generator.permutation(np.arange(pairs) % DIGITS)
    image_rows, recording_rows = (
        np.array([generator.choice(by_digit[digit]) for digit in digits])
        for by_digit in (
            [np.flatnonzero(labels == d) for d in range(DIGITS)] for labels in (images, recordings)
        )
    )
    return image_rows, recording_rows, digits


def prepare_images(
    images: NDArray[np.float32], train: NDArray[np.int64], share: float
) -> NDArray[np.float32]:
    """Images centered and scaled by the training images, without the leading principal components.

    Args:
        images: `[N, 64]`.
        train: rows of the training images; the statistics use no others.
        share: share of the training images' energy in the components to remove, in `[0, 1)`.
    """
    centered = images - images[train].mean(0)
    centered /= centered[train].std()
    if share:
        _, scales, components = np.linalg.svd(centered[train], full_matrices=False)
        energy = np.cumsum(scales**2) / np.sum(scales**2)
        leading = components[: int(np.searchsorted(energy, share)) + 1]  # [K, 64]
        centered = centered - centered @ leading.T @ leading
    return centered


def load(seed: int, noise: str = "demo") -> Splits:
    """The pairs of one seed: images `[N, 64]`, audio `[N, 13, 32]`, digits `[N]`, N = 1,200 / 400 / 1,000."""
    generator = np.random.default_rng(seed)
    level = NOISE[noise]
    images, written = written_digits()
    audio, spoken = spoken_digits()
    image_parts = split_rows(len(images), IMAGES_SPLIT, generator)
    recording_parts = split_rows(len(audio), RECORDINGS_SPLIT, generator)
    images = prepare_images(images, image_parts[0], level.projected_out)
    parts = []
    for image_part, recording_part, pairs in zip(image_parts, recording_parts, PAIRS, strict=True):
        i, r, digits = pair_rows(written[image_part], spoken[recording_part], pairs, generator)
        noisy = (
            values + scale * generator.standard_normal(values.shape, dtype=np.float32)
            for values, scale in (
                (images[image_part[i]], level.image),
                (audio[recording_part[r]], level.audio),
            )
        )
        parts.append(Split(tuple(torch.from_numpy(array) for array in noisy), torch.from_numpy(digits)))
    return Splits(*parts)


class AudioVisualModel(nn.Module):
    """An image and an audio encoder, fused by concatenation: `([B, 64], [B, 13, 32]) -> [B, 10]`.

    >>> AudioVisualModel()(torch.randn(5, 64), torch.randn(5, 13, 32)).shape
    torch.Size([5, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = models.vector_encoder(64)
        self.audio_encoder = models.SeriesEncoder(13)
        self.fusion = nn.Sequential(nn.ReLU(), nn.Linear(2 * models.FEATURES, models.HIDDEN), nn.ReLU())
        self.head = nn.Linear(models.HIDDEN, DIGITS)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Logits `[B, 10]`."""
        features = torch.cat([self.image_encoder(image), self.audio_encoder(audio)], dim=1)  # [B, 64]
        return self.head(self.fusion(features))


def build(noise: str = "demo") -> Experiment:
    """The experiment with one of three noise settings.

    Args:
        noise: `"demo"`, `"noisier"` (more noise on the audio) or `"pca"` (the images' leading components removed).

    Raises:
        ValueError: an unknown setting.

    >>> experiment = build()
    >>> data = experiment.load(0)
    >>> [list(inputs.shape) for inputs in data.train.inputs], list(data.test.target.shape)
    ([[1200, 64], [1200, 13, 32]], [1000])
    """
    if noise not in NOISE:
        raise ValueError(f"noise must be one of {list(NOISE)}, got {noise!r}")
    return Experiment(
        name="avdigits" if noise == "demo" else f"avdigits-{noise}",
        encoders={"image": "image_encoder", "audio": "audio_encoder"},
        head="head",
        load=functools.partial(load, noise=noise),
        model=AudioVisualModel,
        classifier=functools.partial(models.classifier, DIGITS),
    )
