"""
A policy of your own
====================

A policy sees one number per modality and step, the *score* (here minus the unimodal loss), and answers with one
number per modality, the *coefficient* that scales the encoder's gradient or update. This page writes one, tests it,
adds it to another policy, and compares. It takes about half a minute on one core.

The idea: a modality that has kept much of its first loss lags behind and gets a larger step; one that has lost most of
it gets a smaller step.
"""

# %%
# The policy
# ----------
#
# A subclass of ``Coefficients`` with one method. With :math:`L_m` the running mean of a modality's unimodal loss and
# :math:`L_m^0` its first value,
#
# .. math:: c_m = M \, \frac{r_m^s}{\sum_k r_k^s}, \qquad r_m = L_m / L_m^0 .
#
# What has to survive from step to step is *state*: a dictionary of tensors, returned and never changed in place. It
# becomes the current state once the step was really taken, and checkpoints hold it. No value is read on the host:
# no ``.item()`` and no ``if`` on a tensor, so that a GPU never waits. A score that is not finite has nothing to say
# in this step, for example as no sample had the modality.

from dataclasses import dataclass

import torch
from torch.nn import functional as F

import cggm
from cggm.experiments.datasets import avdigits
from cggm.policies import Coefficients, CoefficientUpdate

torch.set_num_threads(1)  # the model is too small for more


@dataclass(frozen=True)
class Laggards(Coefficients):
    """Larger steps for the modalities that have kept more of their first loss.

    Args:
        strength: the exponent s; 0 switches the policy off.
        memory: how much of the running mean is kept in a step, in [0, 1).
    """

    strength: float = 1.0
    memory: float = 0.9

    def initial_state(self, scores):  # scores [M]: the first ones
        return {"first": scores, "mean": scores}

    def balance(self, scores, state):  # scores [M], higher is better
        mean = self.memory * state["mean"] + (1 - self.memory) * scores
        mean = torch.where(scores.isfinite(), mean, state["mean"])
        remaining = (mean / state["first"]).clamp_min(1e-3) ** self.strength
        coefficients = len(scores) * remaining / remaining.sum()
        return CoefficientUpdate(coefficients, coefficients, {**state, "mean": mean})


# %%
# Test the arithmetic
# -------------------
#
# A policy is arithmetic on small tensors, so it can be tested without any model.

policy = Laggards(memory=0.0)
state = policy.initial_state(torch.tensor([-2.0, -2.0, -2.0]))
update = policy.balance(torch.tensor([-0.5, -1.0, -2.0]), state)
print("coefficients:", update.coefficients)
assert update.coefficients.sum().isclose(torch.tensor(3.0))
assert update.coefficients.argmax() == 2  # it has kept all of its loss
torch.testing.assert_close(  # the order of the modalities does not matter
    policy.balance(torch.tensor([-2.0, -1.0, -0.5]), state).coefficients, update.coefficients.flip(0)
)
nothing_new = policy.balance(torch.full((3,), float("nan")), update.state)
torch.testing.assert_close(nothing_new.state, update.state)

# %%
# Try it on a model
# -----------------
#
# The digits of the first tutorial. It is worth asking ``diagnose`` first, as there; the answer for this model was
# that the audio encoder is starved.


def wrap(model, policy):
    return cggm.CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        model,
        encoders={"image": "image_encoder", "audio": "audio_encoder"},
        head="head",
        policy=policy,
    )


data = avdigits.load(seed=0)
rows = slice(0, 64)
inputs, target = [values[rows] for values in data.train.inputs], data.train.target[rows]
model = avdigits.AudioVisualModel()
optimizer = wrap(model, Laggards())
print(optimizer.explain(lambda: F.cross_entropy(model(*inputs), target), target))

# %%
# The row "coefficient scales" says where the coefficients act: with SGD, on the gradient that enters the encoder at
# its output, and with Adam on what the optimizer did to the parameters. The policy need not know.
#
# A policy of coefficients can be added to a combiner, such as ``UnimodalLosses``, and to a dropout. Train with both
# and look at what the policy did:


def train(seed, policy, recorded=False):
    data = avdigits.load(seed)
    torch.manual_seed(seed)
    model = avdigits.AudioVisualModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    if policy is not None:
        optimizer = wrap(model, policy)
    recorder = cggm.Recorder(optimizer) if recorded else None
    for _ in range(20):
        for rows in torch.randperm(len(data.train.target)).split(64):
            inputs, target = [values[rows] for values in data.train.inputs], data.train.target[rows]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), target)
            if policy is not None:
                loss = optimizer.balance(loss, target)
            loss.backward()
            optimizer.step()
            if recorded:
                recorder.record()
    with torch.no_grad():
        right = model(*data.test.inputs).argmax(1) == data.test.target
    return 100 * right.float().mean(), recorder


_, recorder = train(0, cggm.UnimodalLosses() + Laggards(), recorded=True)
print(recorder.optimizer.statistics)
recorder.plot("own_policy.png", ["coefficients", "unimodal_losses", "grad_norms"])

# %%
# The result
# ----------
#
# Against joint training, and against the parts: what does the policy add to ``UnimodalLosses()`` alone?

POLICIES = {
    "joint training": None,
    "Laggards()": Laggards(),
    "UnimodalLosses()": cggm.UnimodalLosses(),
    "UnimodalLosses() + Laggards()": cggm.UnimodalLosses() + Laggards(),
    "the default": cggm.default_policy(),
}
SEEDS = range(1, 5)
results = {
    name: torch.tensor([train(seed, policy)[0] for seed in SEEDS]) for name, policy in POLICIES.items()
}
for name, values in results.items():
    difference = values - results["joint training"]
    print(
        f"{name:30} {values.mean():.1f}, to joint training {difference.mean():+.1f} ± {difference.std():.1f} (4 seeds)"
    )

# %%
# This is one data set, one optimizer and four seeds, and the idea was tried because this data set has a lagging
# modality. It says that the policy works, not that it is better than another. Where all modalities learn at the
# same pace its coefficients stay near 1, and there is nothing to win.
#
# The next step is a comparison on several data sets, with tuned learning rates and intervals: ``cggm compare``
# takes a training function of your own with ``--experiment path/file.py:function``. :doc:`/extend` shows how to
# write a combiner and a task.
