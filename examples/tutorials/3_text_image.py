"""
Text and image: adapters on a frozen CLIP, and no gain
======================================================

Posts have a picture and a caption. A CLIP model, already trained on pairs of pictures and captions, is frozen; a small
adapter on top of each of its towers learns to say what a post is about. One suspects such models of looking at the text
alone.

Nothing is downloaded: the CLIP is a tiny one, and it is trained here on made pairs for a few seconds. Balancing makes
this model worse, and the point of the page is how to see that before a long run. It takes about half a minute on one
core.
"""

# %%
# A small CLIP
# ------------
#
# A picture shows two of twenty things side by side, and its caption names them among other words.

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

import cggm

torch.set_num_threads(1)  # the model is too small for more
THINGS, WORDS, LENGTH, SIZE, EPOCHS = 20, 64, 8, 16, 10
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": WORDS - 1}
TEXT = {**TOWER, **TOKENS, "max_position_embeddings": LENGTH}
VISION = {**TOWER, "image_size": SIZE, "patch_size": 4}
PATTERNS = torch.randn(THINGS, 3, SIZE, SIZE // 2, generator=torch.Generator().manual_seed(3))


def pairs(count, generator, noise):
    """Captions [N, 8], pictures [N, 3, 16, 16], and what is on the left [N]."""
    left, right = torch.randint(THINGS, (2, count), generator=generator)
    image = torch.cat([PATTERNS[left], PATTERNS[right]], 3)
    caption = torch.randint(2 * THINGS + 1, WORDS - 1, (count, LENGTH), generator=generator)
    caption[:, 0], caption[:, 2], caption[:, 4], caption[:, -1] = 0, 1 + left, 1 + right, WORDS - 1
    return caption, image + noise * torch.randn(image.shape, generator=generator), left


torch.manual_seed(0)
clip = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=32))
optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
generator = torch.Generator().manual_seed(0)
for step in range(151):
    caption, image, _ = pairs(64, generator, noise=0.3)
    loss = clip(input_ids=caption, pixel_values=image, return_loss=True).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: contrastive loss {loss:.2f}")
clip.requires_grad_(False).eval()

# %%
# Adapters and a head
# -------------------
#
# In a post, the picture is noisier than before, and three captions in ten name something else. The target is what
# is on the left of the picture. The towers are frozen, so their outputs are computed once.


@torch.no_grad()
def posts(count, seed):
    """Outputs of the towers [N, 32] each, and targets [N]."""
    generator = torch.Generator().manual_seed(seed)
    caption, image, target = pairs(count, generator, noise=0.7)
    wrong = torch.rand(count, generator=generator) < 0.3
    other = 1 + torch.randint(THINGS, (count,), generator=generator)
    caption[:, 2] = torch.where(wrong, other, caption[:, 2])
    return clip.text_model(caption).pooler_output, clip.vision_model(image).pooler_output, target


class Posts(nn.Module):
    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.image = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(128, THINGS)

    def forward(self, text, image):
        return self.head(torch.cat([self.text(text), self.image(image)], 1))


def batches(part, size=64):
    text, image, target = part
    return [((text[r], image[r]), target[r]) for r in torch.randperm(len(target)).split(size)]


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


# %%
# Does this model need it?
# ------------------------
#
# The encoders are the adapters. A frozen tower does not learn, so it cannot be starved.

train_part = posts(2000, seed=0)
torch.manual_seed(0)
report = cggm.diagnose(
    Posts(),
    {"text": "text", "image": "image"},
    head="head",
    train_loader=batches(train_part),
    validation_loader=batches(posts(1000, seed=100)),
    optimizer=adam,
    epochs=EPOCHS,
)
print(report)

# %%
# The suspicion is wrong: the model draws more from the image than from the text (rows "joint model loses if masked"
# and "Shapley share"), although the text alone does better. And each adapter learns inside the joint model what it
# learns alone, and the joint model is better than a fusion of adapters that were trained alone. The modalities
# contribute unequally, and yet none is starved.
#
# Wrap and explain
# ----------------
#
# We balance all the same, to see whether the verdict is right. If the towers themselves are part of your model,
# name the adapters as encoders, not the towers: the wrapper warns about a frozen encoder, since there is nothing to
# balance in it.


def wrap(model, policy=None):
    return cggm.CGGMOptimizerWrapper(
        adam(model.parameters()),
        model,
        encoders={"text": "text", "image": "image"},
        head="head",
        policy=policy,
    )


model = Posts()
optimizer = wrap(model)
(text, image), target = batches(train_part)[0]
print(optimizer.explain(lambda: F.cross_entropy(model(text, image), target), target))

# %%
# Train
# -----


def train(part, seed, balanced=True, policy=None, recorded=False):
    torch.manual_seed(seed)
    model = Posts()
    optimizer = wrap(model, policy) if balanced else adam(model.parameters())
    recorder = None
    if recorded:
        optimizer.record = True
        recorder = cggm.Recorder(optimizer)
    for _ in range(EPOCHS):
        for inputs, target in batches(part):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), target)
            if balanced:
                loss = optimizer.balance(loss, target)
            loss.backward()
            optimizer.step()
            if recorded:
                recorder.record()
    return model, recorder


_, recorder = train(train_part, seed=0, recorded=True)
print(recorder.optimizer.statistics)
recorder.plot("text_image.png", ["unimodal_losses", "unimodal_shares", "angles"])

# %%
# The unimodal losses stay high, since neither modality can do it alone: three captions in ten are wrong, and the
# picture is noisy. A large unimodal loss is no sign of a starved encoder.
#
# The result
# ----------


@torch.no_grad()
def accuracy(model, part):
    text, image, target = part
    return 100 * (model(text, image).argmax(1) == target).float().mean()


METHODS = {
    "joint training": {"balanced": False},
    "unimodal losses": {"policy": cggm.UnimodalLosses()},
    "the default": {},
}
SEEDS = range(1, 6)
data = {seed: (posts(2000, seed), posts(1000, seed + 1000)) for seed in SEEDS}
results = {
    name: torch.tensor([accuracy(train(data[seed][0], seed, **options)[0], data[seed][1]) for seed in SEEDS])
    for name, options in METHODS.items()
}
for name, values in results.items():
    difference = values - results["joint training"]
    print(
        f"{name:16} {values.mean():.1f}, to joint training {difference.mean():+.1f} ± {difference.std():.1f} (5 seeds)"
    )

# %%
# Unimodal gradients pull the adapters towards what each modality can do alone, and dropout takes the text away from
# a model that needs it to correct the picture, and the other way round. **Do not balance this model.** What may
# help is elsewhere: better towers, or training them along. Diagnose again then, since what learns can be starved.
