"""Language modelling on an image and text, as LLaVA does it: labels `[B, T]`, -100 where no token is predicted.

No unimodal classifier fits such a loss. Each modality is scored by the model's own loss while the other modality's
embeddings are masked. Run it with `python examples/train_llava.py`.
"""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from cggm import CGGM, CGGMOptimizerWrapper, MaskedScores

WORDS, IMAGE, PATCHES, ANSWERS, SIZE = 40, 39, 4, 4, 16
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def llava():
    """A language model that reads a picture as four tokens."""
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": WORDS, "num_key_value_heads": 2, **TOWER},
        vision_config={"model_type": "clip_vision_model", "image_size": SIZE, "patch_size": 8, **TOWER},
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def questions(count, size=32):
    """The answer is one of four words: which one, the picture shows and the question's first word hints at."""
    pictures = torch.randn(ANSWERS, 3, SIZE, SIZE)
    for _ in range(count):
        answer = torch.randint(ANSWERS, (size,))
        hint = torch.where(torch.rand(size) < 0.5, answer, torch.randint(ANSWERS, (size,))) + ANSWERS
        words = torch.randint(2 * ANSWERS, WORDS - 1, (size, 3))
        image = torch.full((size, PATCHES), IMAGE)
        ids = torch.cat([image, hint[:, None], words, answer[:, None]], 1)
        labels = torch.cat([torch.full((size, PATCHES + 4), -100), answer[:, None]], 1)
        yield {"input_ids": ids, "pixel_values": pictures[answer], "labels": labels}


def main(steps=60, policy=None):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model = llava()
    encoders = {
        "text": "model.language_model.embed_tokens",
        "image": ["model.vision_tower", "model.multi_modal_projector"],
    }
    optimizer = CGGMOptimizerWrapper(
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        model,
        encoders=encoders,
        scores=MaskedScores(every=5),
        policy=policy or CGGM(),
    )
    losses = []
    for batch in questions(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        optimizer.balance(loss, batch["labels"]).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    losses, optimizer = main()
    scores = dict(zip(optimizer.modalities, optimizer.statistics["scores"].tolist(), strict=True))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, each modality alone: {scores}")
