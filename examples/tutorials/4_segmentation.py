"""
Segmentation: four scans of a brain, and one is missing
=======================================================

Find a tumor in four scans of the same slice, called T1, T1ce, T2 and FLAIR as in BraTS. Each shows something else:
edema is bright in T2 and FLAIR, the enhancing core in T1ce. In practice, one of the four is often missing. The scans
are made here, 24 pixels wide. It takes about a minute on one core.

Four modalities, maps instead of vectors, a task that is not classification: what changes for the wrapper?
"""

# %%
# The data and the model
# ----------------------

import torch
from torch import nn
from torch.nn import functional as F

import cggm
from cggm.tasks import Segmentation

torch.set_num_threads(1)  # the model is too small for more
SCANS, SIZE, EPOCHS = ("T1", "T1ce", "T2", "FLAIR"), 24, 16
BRIGHTNESS = torch.tensor(  # scan x class: healthy, edema, core, enhancing core
    [[0, 0.0, -0.6, -0.6], [0, 0.0, -0.3, 1.6], [0, 0.5, 0.8, 0.5], [0, 1.5, 0.9, 0.9]]
)
ANATOMY = torch.tensor([0.5, 0.4, 0.3, 0.25])[:, None, None]  # how much a scan shows of what is no tumor


def slices(count, seed):
    """Scans [N, 4, 24, 24] and classes [N, 24, 24]: a wavy tumor in three layers, somewhere in the slice."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    center = 6 + (SIZE - 12) * torch.rand(2, count, 1, 1, generator=generator)
    y, x = y - center[0], x - center[1]
    turn = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    radius = (5 + 3 * torch.rand(count, 1, 1, generator=generator)) * (
        1 + 0.2 * (3 * torch.atan2(y, x) + turn).sin()
    )
    distance = (y**2 + x**2).sqrt()
    target = sum((distance < part * radius).long() for part in (1.0, 0.65, 0.4))
    anatomy = F.interpolate(torch.randn(count, 1, 6, 6, generator=generator), size=SIZE, mode="bilinear")
    scans = BRIGHTNESS[:, target].transpose(0, 1) + ANATOMY * anatomy
    return scans + 0.6 * torch.randn(scans.shape, generator=generator), target


class Tumor(nn.Module):
    """The names of missing scans can be passed; their features are then zero."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                    nn.Conv2d(8, 8, 3, padding=1),
                )
                for name in SCANS
            }
        )  # fmt: skip
        self.fusion = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, scans, missing=()):
        features = [encoder(scans[:, i : i + 1]) for i, encoder in enumerate(self.encoders.values())]
        features = [f * (name not in missing) for f, name in zip(features, SCANS, strict=True)]
        return self.head(self.fusion(torch.cat(features, 1)))


def batches(part, size=16):
    scans, target = part
    return [(scans[r], target[r]) for r in torch.randperm(len(target)).split(size)]


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


# %%
# Does this model need it?
# ------------------------
#
# The head is a convolution, so the unimodal classifiers are small convolutional networks that predict the whole
# map. The task is an object: its ``loss`` trains them, and its ``score``, the mean Dice of the three regions, is
# what is compared.

task = Segmentation()
ENCODERS = {name: f"encoders.{name}" for name in SCANS}
torch.manual_seed(0)
report = cggm.diagnose(
    Tumor(),
    ENCODERS,
    head="head",
    train_loader=batches(slices(160, seed=0)),
    validation_loader=batches(slices(80, seed=100)),
    task=task,
    optimizer=adam,
    epochs=EPOCHS,
)
print(report)

# %%
# The notes say what cannot be measured on maps. Every encoder is worse inside the joint model than alone, T1 by
# far, and yet a fusion of encoders that were trained alone is no better than the joint model: the scans complement
# one another, and it needs little of each. So do not expect a better outline of a complete set of scans.
#
# Wrap and explain
# ----------------


def wrap(model, policy=None):
    return cggm.CGGMOptimizerWrapper(
        adam(model.parameters()), model, encoders=ENCODERS, head="head", task=task, policy=policy
    )


model = Tumor()
optimizer = wrap(model)
scans, target = batches(slices(160, seed=0))[0]
print(optimizer.explain(lambda: task.loss(model(scans), target), target))

# %%
# Train
# -----


def train(seed, balanced=True, policy=None, recorded=False):
    torch.manual_seed(seed)
    model = Tumor()
    optimizer = wrap(model, policy) if balanced else adam(model.parameters())
    recorder = None
    if recorded:
        optimizer.record = True
        recorder = cggm.Recorder(optimizer)
    part = slices(160, seed)
    for _ in range(EPOCHS):
        for scans, target in batches(part):
            optimizer.zero_grad()
            loss = task.loss(model(scans), target)
            if balanced:
                loss = optimizer.balance(loss, target)
            loss.backward()
            optimizer.step()
            if recorded:
                recorder.record()
    return model, recorder


_, recorder = train(seed=0, recorded=True)
print(recorder.optimizer.statistics)
recorder.plot("segmentation.png", ["unimodal_losses", "angles", "step_changes"])

# %%
# The result
# ----------
#
# Dice in percent on other slices, with all four scans and without one.


@torch.no_grad()
def dice(model, seed):
    scans, target = slices(100, seed + 1000)
    return [100 * task.score(model(scans, missing), target) for missing in ((), *((name,) for name in SCANS))]


METHODS = {
    "joint training": {"balanced": False},
    "dropout alone": {"policy": cggm.ModalityDropout(0.2)},
    "the default": {},
}
SEEDS = range(1, 4)
results = {
    name: torch.tensor([dice(train(seed, **options)[0], seed) for seed in SEEDS])  # [seeds, 5]
    for name, options in METHODS.items()
}
print(
    f"{'mean of 3 seeds':16}" + "".join(f"{name:>10}" for name in ("all", *(f"no {scan}" for scan in SCANS)))
)
for name, values in results.items():
    print(f"{name:16}" + "".join(f"{value:10.1f}" for value in values.mean(0).tolist()))
difference = (results["the default"] - results["joint training"])[:, 0]
print("default minus joint training, all scans, by seed:", [round(x, 1) for x in difference.tolist()])

# %%
# With all four scans nothing is won, and the sign of the difference changes with the seed. Without T1ce or FLAIR
# the jointly trained model fails. Dropout alone repairs a part of that, and the default does clearly better than
# dropout alone: the unimodal gradients teach each encoder what its scan shows. Where no scan is ever missing, joint
# training is the right choice for this model.
