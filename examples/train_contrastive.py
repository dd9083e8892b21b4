"""Contrastive training of two towers, CLIP, SigLIP or a VisionTextDualEncoder: there are no classes and no targets.

Each modality is scored by how well its embeddings find their partners in the batch.
"""

import torch
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPVisionConfig, SiglipConfig, SiglipModel
from transformers import VisionTextDualEncoderConfig as DualConfig
from transformers import VisionTextDualEncoderModel as DualEncoder

from cggm import CGGM, CGGMOptimizerWrapper, Encoder

LENGTH, WORDS, SIZE = 6, 40, 16
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIZE, "patch_size": 8}
TOKENS = {"bos_token_id": 0, "eos_token_id": WORDS - 1}
TEXT = {**TOWER, **TOKENS, "vocab_size": WORDS, "max_position_embeddings": LENGTH}
PROJECTED = {
    "text": Encoder(["text_model", "text_projection"]),
    "image": Encoder(["vision_model", "visual_projection"]),
}


def clip():
    """Two towers, each with a projection: the encoder is both modules, and its features are the embeddings."""
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)), PROJECTED


def dual_encoder():
    """Any two models of transformers behind projections."""
    towers = CLIPVisionConfig(**VISION), BertConfig(**TEXT, hidden_dropout_prob=0.0)
    return DualEncoder(DualConfig.from_vision_text_configs(*towers, projection_dim=8)), PROJECTED


def siglip():
    """The towers put the embeddings out themselves."""
    config = SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
    model = SiglipModel(config)
    torch.nn.init.constant_(model.logit_scale, 2.3)  # as the paper starts
    torch.nn.init.constant_(model.logit_bias, -2.8)
    towers = {"text": "text_model", "image": "vision_model"}
    return model, {name: Encoder(module, output="pooler_output") for name, module in towers.items()}


def pairs(count, size=16):
    """Captions of random words, and noisy images of what their first words mean."""
    patterns = torch.randn(WORDS, 3, SIZE, SIZE)
    for _ in range(count):
        words = torch.randint(1, WORDS - 1, (size, LENGTH))
        words[:, 0] = torch.randperm(WORDS - 2)[:size] + 1
        words[:, -1] = WORDS - 1
        yield words, patterns[words[:, 0]] + 0.1 * torch.randn(size, 3, SIZE, SIZE)


def main(build=clip, steps=120):
    """Train for some steps; return the losses and the optimizer."""
    torch.manual_seed(0)
    model, encoders = build()
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    optimizer = CGGMOptimizerWrapper(adam, model, encoders=encoders, scores="retrieval", policy=CGGM())
    losses = []
    for words, images in pairs(steps):
        loss = model(input_ids=words, pixel_values=images, return_loss=True).loss
        optimizer.zero_grad()
        optimizer.balance(loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


if __name__ == "__main__":
    for build in (clip, dual_encoder, siglip):
        losses, optimizer = main(build)
        print(
            build.__name__,
            f"loss {losses[0]:.2f} -> {losses[-1]:.2f}",
            optimizer.statistics["scores"].tolist(),
        )
