"""
Digits: is an encoder starved, and does balancing feed it?
===========================================================

A model hears a spoken digit and sees a handwritten one. Both show the same digit, and there is noise on both, so the
model does best if it uses both. The recordings and images come with the library. It takes about half a minute on one
core, and the steps are those of any project: diagnose, wrap, explain, train, look, compare.
"""

# %%
# The model and the data
# ----------------------
#
# One encoder per modality, a fusion of the two, and an output layer, the *head*. Nothing here knows about balancing.

import torch
from torch import nn
from torch.nn import functional as F

import cggm
from cggm.experiments.datasets import avdigits

torch.set_num_threads(1)  # the model is too small for more
EPOCHS = 20


class AudioEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(13, 32, 5, stride=2), nn.ReLU(), nn.Conv1d(32, 48, 3, stride=2), nn.ReLU()
        )
        self.output = nn.Linear(96, 32)

    def forward(self, audio):  # [B, 13, T]
        frames = self.convolutions(audio)
        return self.output(torch.cat([frames.mean(2), frames.amax(2)], 1))


class AudioVisual(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.audio_encoder = AudioEncoder()
        self.fusion = nn.Sequential(nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, image, audio):
        features = torch.cat([self.image_encoder(image), self.audio_encoder(audio)], 1)
        return self.head(self.fusion(features))


class Batches:
    """Shuffled batches of one part of the data; a DataLoader does as well."""

    def __init__(self, split, size=64):
        self.split, self.size = split, size

    def __iter__(self):
        (image, audio), target = self.split
        for rows in torch.randperm(len(target)).split(self.size):
            yield (image[rows], audio[rows]), target[rows]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9)


data = avdigits.load(seed=0)
print({name: [list(x.shape) for x in part.inputs] for name, part in data._asdict().items()})

# %%
# Does this model need it?
# ------------------------
#
# ``diagnose`` trains copies: the joint model, and each encoder on its own. Then it compares what the encoders have
# learned, by linear classifiers (*probes*) on their features. An encoder that is much better alone than inside the
# joint model is *starved*.

torch.manual_seed(0)
report = cggm.diagnose(
    AudioVisual(),
    {"image": "image_encoder", "audio": "audio_encoder"},
    head="head",
    train_loader=Batches(data.train),
    validation_loader=Batches(data.validation),
    optimizer=sgd,
    epochs=EPOCHS,
)
print(report)

# %%
# Read the rows "trained alone", "inside the joint model" and "gap", and then the verdict.
#
# Wrap the optimizer, and look before you train
# ---------------------------------------------
#
# The wrapper takes the optimizer, the model, the encoders and the head. ``explain`` runs one batch and says what it
# found: where the features are, which unimodal classifier each encoder gets, and what the policy will do. It changes
# nothing.


def wrap(model):
    return cggm.CGGMOptimizerWrapper(
        sgd(model.parameters()),
        model,
        encoders={"image": "image_encoder", "audio": "audio_encoder"},
        head="head",
    )


model = AudioVisual()
optimizer = wrap(model)
(image, audio), target = next(iter(Batches(data.train)))
print(optimizer.explain(lambda: F.cross_entropy(model(image, audio), target), target))

# %%
# Train
# -----
#
# One line is new in the loop, ``optimizer.balance(loss, target)``. With the default policy all coefficients are 1: it
# combines the multimodal and the unimodal gradient at each encoder's output and drops modalities now and then.
# ``optimizer.record = True`` measures what the combination does, at a small cost.


def train(data, seed, balanced, record=False):
    torch.manual_seed(seed)
    model = AudioVisual()
    optimizer = wrap(model) if balanced else sgd(model.parameters())
    recorder = None
    if record:
        optimizer.record = True
        recorder = cggm.Recorder(optimizer)
    for _ in range(EPOCHS):
        for (image, audio), target in Batches(data.train):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(image, audio), target)
            if balanced:
                loss = optimizer.balance(loss, target)
            loss.backward()
            optimizer.step()
            if record:
                recorder.record()
    return model, optimizer, recorder


model, optimizer, recorder = train(data, seed=0, balanced=True, record=True)
print(optimizer.statistics)

# %%
# These are the figures of the last step. ``unimodal_shares`` is the unimodal gradient's part in the sum that enters
# an encoder, one half under the default policy. ``angles`` says in degrees how far the two gradients point apart;
# beyond 90 they work against each other. The whole run as a picture:

recorder.plot("digits.png", ["unimodal_losses", "grad_norms", "unimodal_shares", "angles"])

# %%
# Does it help?
# -------------
#
# One run proves little. Compare with joint training on the test part, over seeds that were used for nothing else, and
# look at the difference seed by seed.


@torch.no_grad()
def accuracy(model, part):
    return 100 * (model(*part.inputs).argmax(1) == part.target).float().mean()


pairs = []
for seed in range(1, 6):
    data = avdigits.load(seed)
    pairs.append([accuracy(train(data, seed, balanced)[0], data.test) for balanced in (False, True)])
joint, balanced = torch.tensor(pairs).T
difference = balanced - joint
print(f"joint training {joint.mean():.1f}, balanced {balanced.mean():.1f}")
print(f"difference by seed: {[round(value, 1) for value in difference.tolist()]}")
print(f"mean difference {difference.mean():+.1f}, standard deviation {difference.std():.1f}")

# %%
# When it does not help
# ---------------------
#
# Another optimizer or learning rate may do as well as balancing. ``cggm demo`` trains a model of this kind with Adam,
# too: joint training is better there, and the difference smaller. Unimodal losses alone
# (``policy=cggm.UnimodalLosses()``) often bring a good part of the gain. ``cggm compare`` runs all of them over seeds;
# :doc:`/evidence` has the tables. The next two tutorials are about models for which balancing wins no accuracy.
