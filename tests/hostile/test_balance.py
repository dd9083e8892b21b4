"""`balance()` refuses by name what cannot be, and changes nothing: the right call works as if it came first."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training import finish, ready
from unchanged import refused

from cggm import CGGM, MultiLabel, Regression
from cggm.policies import AGM, MIMO, TCMax, UnimodalLosses
from helpers import batches, small_model, wrap

B = 32
LOSSES = {
    "a float": (lambda loss: 0.5, "loss must be a tensor.*got float"),
    "None": (lambda loss: None, "loss must be a tensor.*got NoneType"),
    "a list": (lambda loss: [loss], "loss must be a tensor.*got list"),
    "a string": (lambda loss: "loss", "loss must be a tensor.*got str"),
    "a dictionary": (lambda loss: {"loss": loss}, "loss must be a tensor.*got dict"),
    "a module": (lambda loss: nn.CrossEntropyLoss(), "loss must be a tensor.*got CrossEntropyLoss"),
    "one element": (lambda loss: loss[None], r"loss must be 0-dimensional.*got \[1\]"),
    "a loss per sample": (lambda loss: loss.expand(B), r"loss must be 0-dimensional.*got \[32\]"),
    "detached": (lambda loss: loss.detach(), "a loss with a graph"),
    "a number as a tensor": (lambda loss: torch.tensor(loss.item()), "a loss with a graph"),
    "a leaf": (lambda loss: torch.tensor(1.0, requires_grad=True), "does not depend|no features|graph"),
    "complex": (lambda loss: loss + 0j, "loss must"),
}
TARGETS = {
    "None": (lambda t: None, "target must be a tensor.*NoneType"),
    "a list": (lambda t: t.tolist(), "target must be a tensor.*list"),
    "a string": (lambda t: "target", "target must be a tensor.*str"),
    "a number": (lambda t: 1, "target must be a tensor.*int"),
    "a dictionary": (lambda t: {"y": t}, "target must be a tensor.*dict"),
    "NumPy": (lambda t: t.numpy(), "target must be a tensor.*ndarray"),
    "0-dimensional": (lambda t: t[0], r"target must have one row per sample"),
    "too short": (lambda t: t[:5], r"target must have one row per sample.*\[5\]"),
    "too long": (lambda t: torch.cat([t, t]), r"target must have one row per sample.*\[64\]"),
    "empty": (lambda t: t[:0], r"target must have one row per sample.*\[0\]"),
    "a column": (lambda t: t[:, None], r"target must hold class indices.*got \[32, 1\]"),
    "float indices": (lambda t: t.float(), r"target must hold class indices.*float32"),
    "integer one-hot": (lambda t: F.one_hot(t, 3), "target must hold class indices.*int64"),
    "two classes for three": (lambda t: torch.rand(B, 2), r"target must hold class indices.*got \[32, 2\]"),
    "bool": (lambda t: t > 0, "target must hold class indices.*bool"),
    "complex": (lambda t: t + 0j, "target must be a dense tensor of real numbers.*complex"),
    **{
        str(dtype): (lambda t, dtype=dtype: t.to(dtype), rf"target must hold class indices.*{dtype}")
        for dtype in (torch.int32, torch.int16, torch.int8, torch.float16, torch.bfloat16, torch.float64)
    },
    "a class too many": (lambda t: t + 1, "target does not fit.*Target 3 is out of bounds"),
    "negative": (lambda t: t - 7, "target does not fit.*Target -5 is out of bounds"),
    "meta": (lambda t: t.to("meta"), "target must.*meta"),
    "sparse": (lambda t: t.to_sparse(), "target must.*sparse"),
}
PRESENT = {
    "a list": (lambda m: [m], "present must map modalities to masks.*got list"),
    "a mask": (lambda m: m, "present must map modalities to masks.*got Tensor"),
    "a name": (lambda m: "audio", "present must map modalities to masks.*got str"),
    "a set": (lambda m: {"audio"}, "present must map modalities to masks.*got set"),
    "True": (lambda m: True, "present must map modalities to masks.*got bool"),
    "an unknown name": (lambda m: {"video": m}, r"present names \['video'\], but the modalities are"),
    "a number": (lambda m: {0: m}, r"present names \[0\]"),
    "a mask of numbers": (
        lambda m: {"audio": m.float()},
        r"present\['audio'\] must be a bool tensor.*float32",
    ),
    "a mask of integers": (lambda m: {"audio": m.long()}, r"present\['audio'\] must be a bool tensor.*int64"),
    "a list of bools": (lambda m: {"audio": m.tolist()}, r"present\['audio'\] must be a bool tensor.*list"),
    "None for a mask": (lambda m: {"audio": None}, r"present\['audio'\] must be a bool tensor.*NoneType"),
    "no": (lambda m: {"audio": "no"}, r"present\['audio'\] must be a bool tensor.*str"),
    "1": (lambda m: {"audio": 1}, r"present\['audio'\] must be a bool tensor.*int"),
    "too short": (lambda m: {"audio": m[:3]}, r"present\['audio'\] must be \[32\].*got \[3\]"),
    "a column": (lambda m: {"audio": m[:, None]}, r"present\['audio'\] must be \[32\].*got \[32, 1\]"),
    "one for all": (lambda m: {"audio": torch.tensor(True)}, r"present\['audio'\] must be \[32\].*got \[\]"),
    "meta": (lambda m: {"audio": m.to("meta")}, r"present\['audio'\] must.*meta"),
}
BALANCE = {
    **{
        f"loss {k}": (lambda o, loss, t, f=f: o.balance(f(loss), t), words)
        for k, (f, words) in LOSSES.items()
    },
    **{
        f"target {k}": (lambda o, loss, t, f=f: o.balance(loss, f(t)), words)
        for k, (f, words) in TARGETS.items()
    },
    **{
        f"present {k}": (lambda o, loss, t, f=f: o.balance(loss, t, present=f(torch.ones(B).bool())), words)
        for k, (f, words) in PRESENT.items()
    },
    "no arguments": (lambda o, loss, t: o.balance(), "missing 1 required positional argument: 'loss'"),
    "present by position": (lambda o, loss, t: o.balance(loss, t, {}), "positional arguments"),
    "no grad": (lambda o, loss, t: torch.no_grad()(o.balance)(loss, t), "a loss with a graph"),
    "inference mode": (lambda o, loss, t: torch.inference_mode()(o.balance)(loss, t), "a loss with a graph"),
}


@pytest.mark.parametrize("case", BALANCE)
def test_balance(case):
    call, words = BALANCE[case]
    expected = finish(*ready())
    model, optimizer, loss, target = ready()
    with refused(model, optimizer.base, words):
        call(optimizer, loss, target)
    values, statistics = finish(model, optimizer, loss, target)
    assert torch.equal(values, expected[0])
    torch.testing.assert_close(statistics, expected[1], rtol=0, atol=0)


TASKS = {
    "regression of words": (Regression(), lambda t: ["a"] * B, "target must be a tensor"),
    "regression of three numbers": (
        Regression(),
        lambda t: torch.ones(B),
        r"target must have as many elements",
    ),
    "labels of another width": (
        MultiLabel(),
        lambda t: torch.ones(B, 2),
        r"target must hold 0 or 1 for each label",
    ),
    "labels as indices": (MultiLabel(), lambda t: t, r"target must hold 0 or 1 for each label"),
    "segmentation of vectors": ("segmentation", lambda t: t, r"target must hold class indices \[B, ...\]"),
    "complex numbers": (Regression(), lambda t: torch.ones(B, 3) + 0j, "target must"),
}


@pytest.mark.parametrize("case", TASKS)
def test_balance_with_a_target_of_another_task(case):
    task, make, words = TASKS[case]
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses(), task=task)
    ((inputs, target),) = batches(1)
    loss = model(*inputs).sum()
    with refused(model, optimizer.base, words):
        optimizer.balance(loss, make(target))


POLICIES = {
    "an optimum of three for two": (
        UnimodalLosses() + MIMO(optimum=(1.0,) * 3),
        {},
        "optimum must have one loss per",
    ),
    "more pairs than max_rows": (TCMax(max_rows=100), {}, "max_rows=100"),
    "present with AGM": (AGM(), {"present": {"audio": True}}, "present: AGM"),
    "present with masked scores": (CGGM(), {"present": {"audio": True}}, "present needs scores"),
}


@pytest.mark.parametrize("case", POLICIES)
def test_balance_with_a_policy_that_cannot(case):
    policy, named, words = POLICIES[case]
    model = small_model()
    optimizer = wrap(model, policy=policy, scores="masked" if "masked" in case else "classifiers")
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs), target)
    with refused(model, optimizer.base, words):
        optimizer.balance(loss, target, **named)
