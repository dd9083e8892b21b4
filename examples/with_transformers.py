"""Balanced training with the Trainer of transformers: a CLIP-like and a LLaVA-like model, tiny and untrained."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    Trainer,
    TrainingArguments,
)

from cggm import CGGM, CGGMOptimizerWrapper

CLASSES, WORDS, IMAGE_TOKEN = 4, 30, 31
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 8, "patch_size": 4, "projection_dim": 16}


class ClipClassifier(nn.Module):
    """A class from the pooled outputs of both towers of a CLIP."""

    encoders = {"text": "clip.text_model", "image": "clip.vision_model"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        text = {**SIZES, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 2}
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
        self.head = nn.Linear(32, CLASSES)

    def forward(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Any]:
        """Loss and logits."""
        text = self.clip.text_model(input_ids).pooler_output
        image = self.clip.vision_model(pixel_values).pooler_output
        logits = self.head(torch.cat([text, image], 1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class LlavaClassifier(nn.Module):
    """A class from the last token of a LLaVA, whose vision tower is frozen as in its first stage of training."""

    encoders = {"text": "llava.language_model.embed_tokens", "image": "llava.multi_modal_projector"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        language = LlamaConfig(**SIZES, vocab_size=32, max_position_embeddings=32, num_key_value_heads=2)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=language,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1,
        )
        self.llava = LlavaModel(config)
        self.llava.vision_tower.requires_grad_(False)
        self.head = nn.Linear(16, CLASSES)

    def forward(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Any]:
        """Loss and logits; an image takes four tokens in front of the text."""
        places = input_ids.new_full((len(input_ids), 4), IMAGE_TOKEN)
        output = self.llava(input_ids=torch.cat([places, input_ids], 1), pixel_values=pixel_values)
        logits = self.head(output.last_hidden_state[:, -1])
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Pairs(Dataset):
    """A word and the brightness of an image decide on the class."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(3, WORDS, (6,), generator=generator)
        bright = torch.randint(2, (), generator=generator)
        image = torch.randn(3, 8, 8, generator=generator) * 0.3 + 2.0 * bright - 1.0
        words[-1] = 3 + index % 2
        return {"input_ids": words, "pixel_values": image, "labels": 2 * bright + index % 2}


class BalancedTrainer(Trainer):
    """Two overridden methods: the optimizer is wrapped, and training losses are balanced."""

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        """The Trainer's own optimizer in the wrapper."""
        super().create_optimizer(*arguments)
        self.balanced = self.optimizer = CGGMOptimizerWrapper(
            self.optimizer, self.model, encoders=self.model.encoders, head="head", policy=CGGM(lam=0.1)
        )
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, **options: Any
    ) -> Any:
        """The model's loss; while training the balanced one."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        if model.training:
            loss = self.balanced.balance(loss, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def main(
    kind: type[nn.Module] = ClipClassifier, steps: int = 60, folder: str | None = None, **options: Any
) -> Any:
    """Train, and return the trainer."""
    settings = {
        "output_dir": folder or tempfile.mkdtemp(),
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # the classifiers run after the model
    }
    torch.manual_seed(0)
    trainer = BalancedTrainer(
        model=kind(),
        args=TrainingArguments(**{**settings, **options}),
        train_dataset=Pairs(),
        eval_dataset=Pairs(),
    )
    trainer.train(resume_from_checkpoint=options.pop("resume_from_checkpoint", None))
    return trainer


if __name__ == "__main__":
    for model in (ClipClassifier, LlavaClassifier):
        print(model.__name__, [entry["loss"] for entry in main(model).state.log_history if "loss" in entry])
