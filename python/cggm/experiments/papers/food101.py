"""UPMC-Food 101: recipes' images and texts, through frozen ViT and BERT encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cggm import Classification

from .files import corrupt, existing, inside, needs, read_image, read_json
from .metrics import classification
from .recipe import Data, Recipe, Sample
from .transformer import SequenceClassifier, SequenceModel, Sizes

PARTS = ("train", "dev", "test")
KEYS = ("id", "text_tokens", "img_path", "label")
SIZES = Sizes(4, 0.2, 0.15, 0.2, 0.15, 0.1)
TOKENS = 512


class Recipes(Dataset):
    """One part: pixels `[3, side, side]`, token numbers with their mask `[T, 2]`, and the class.

    Args:
        folder: image paths are relative to it.
        rows: of the part's file.
        labels: class name -> number.
        tokenizer: of the text model.
        side: of the images, as the image model wants them.
    """

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], labels: dict[str, int], tokenizer: Any, side: int
    ) -> None:
        self.folder, self.rows, self.labels = folder, rows, labels
        self.tokenizer, self.side = tokenizer, side

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:
        row = self.rows[i]
        encoded = self.tokenizer(
            " ".join(row["text_tokens"]), truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        tokens = torch.stack([encoded["input_ids"][0], encoded["attention_mask"][0]], dim=1)  # [T, 2]
        image = read_image(inside(self.folder, row["img_path"], self.folder), self.side)  # [side, side, 3]
        pixels = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1  # ViT's own scale
        return (pixels, tokens), torch.tensor(self.labels[row["label"]])


class FoodModel(nn.Module):
    """Frozen image and text models, then projections, encoders, fusion and head of `SequenceModel`.

    Args:
        image: a Hugging Face ViT.
        text: a Hugging Face BERT.
        classes: how many.
    """

    def __init__(self, image: nn.Module, text: nn.Module, classes: int) -> None:
        super().__init__()
        self.image, self.text = image.requires_grad_(False), text.requires_grad_(False)
        widths = {"image": image.config.hidden_size, "text": text.config.hidden_size}
        self.trained = SequenceModel(widths, classes, SIZES)

    def train(self, mode: bool = True) -> FoodModel:
        """As `nn.Module.train`, but the frozen models stay in evaluation mode."""
        super().train(mode)
        self.image.eval()
        self.text.eval()
        return self

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Logits `[B, classes]` of pixels `[B, 3, side, side]` and tokens with their mask `[B, T, 2]`."""
        with torch.no_grad():
            image = self.image(pixel_values=pixels).last_hidden_state  # [B, patches + 1, width]
            text = self.text(input_ids=tokens[..., 0], attention_mask=tokens[..., 1]).last_hidden_state
        return self.trained(image, text * tokens[..., 1:])  # padding becomes zeros


def _pretrained(kind: str, path: str) -> Any:
    transformers = needs("transformers")
    try:
        return getattr(transformers, kind).from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"no {kind} at {path!r}: {str(error).splitlines()[0]}") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    """The part's recipes, each checked; image paths stay inside the folder of the file."""
    rows = read_json(path, "list of recipes")
    if not isinstance(rows, list) or not rows:
        raise corrupt(
            path,
            "a list of recipes",
            "no recipe in it" if rows == [] else f"one of type {type(rows).__name__}",
        )
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise corrupt(path, "a list of objects", f"entry {i} of type {type(row).__name__}")
        lacking = [key for key in KEYS if key not in row]
        if lacking:
            raise corrupt(path, f"{list(KEYS)} in each entry", f"entry {i} has no {lacking}")
        words, label = row["text_tokens"], row["label"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise corrupt(path, f"a list of words as text_tokens of entry {i}", repr(words)[:200])
        if not isinstance(label, str):
            raise corrupt(path, f"a name as label of entry {i}", repr(label)[:200])
        inside(path.parent, row["img_path"], path)
    return rows


def read(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """The rows of each part, and the number of each class.

    Raises:
        DataError: a file is missing or holds something else.
    """
    parts = {part: _rows(existing(path, "folder") / f"{part}.json") for part in PARTS}
    labels = {name: i for i, name in enumerate(sorted({row["label"] for row in parts["train"]}))}
    for part, rows in parts.items():
        unknown = {row["label"] for row in rows} - set(labels)
        if unknown:
            raise corrupt(path / f"{part}.json", "train.json's classes", sorted(unknown)[:3])
    return parts, labels


def build(
    path: Path, *, vit: str = "google/vit-base-patch16-224-in21k", bert: str = "bert-base-uncased"
) -> Recipe:
    """The paper's experiment: AdamW 1e-3, weight decay 6e-3, batches of 128, 60 epochs, ρ 1.3, λ 0.05.

    Args:
        path: the folder with `train.json`, `dev.json`, `test.json` and the images.
        vit: folder or name of the image model.
        bert: folder or name of the text model.

    Raises:
        ValueError: a file, an image or a model is missing, or a file holds something else.
    """
    parts, labels = read(path)
    image, text = _pretrained("ViTModel", vit), _pretrained("BertModel", bert)
    tokenizer = _pretrained("AutoTokenizer", bert)
    model = FoodModel(image, text, len(labels))
    return Recipe(
        name="food101",
        data=Data(
            *(Recipes(path, rows, labels, tokenizer, image.config.image_size) for rows in parts.values())
        ),
        model=model,
        encoders={m: f"trained.encoders.{m}" for m in ("image", "text")},
        head="trained.head",
        classifiers={m: SequenceClassifier(model.trained.head, SIZES) for m in ("image", "text")},
        task=Classification(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=6e-3),
        metrics=classification,
        classifier_group={"lr": 5e-4, "weight_decay": 3e-3},
        batch_size=128,
        epochs=60,
        lam=0.05,
    )
