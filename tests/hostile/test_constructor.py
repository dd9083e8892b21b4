"""The wrapper's constructor refuses what cannot work by name, and leaves model and optimizer as they were."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from unchanged import refused

from cggm import (
    CGGM,
    CGGMOptimizerWrapper,
    Classification,
    ClassifierScores,
    Encoder,
    MaskedScores,
    Policy,
)
from cggm.policies import AGM, DGL, MIMO, MLB, OPM, MMPareto, TCMax, UnimodalLosses
from helpers import BASES, backward, batches, small_model

AUDIO, IMAGE = "encoders.audio", "encoders.image"


def named(name):
    """Encoders of which one has this name."""
    return {name: AUDIO, "image": IMAGE}


def audio(given=AUDIO, **options):
    """Encoders of which one is described this way."""
    return {"audio": Encoder(given, **options) if options else given, "image": IMAGE}


class Untitled:
    """A task that lacks `score`."""

    def loss(self, output, target):
        return output.sum()


SHARED = nn.Linear(4, 3)
#: Argument, its value (a function is given the model), words of the message.
CASES = {
    **{
        f"encoders {given!r}": ("encoders", given, "encoders must map at least two modality names to encoders.*got")
        for given in (None, {}, [], (), "encoders.audio", 3, {"audio": AUDIO}, [AUDIO, IMAGE], {AUDIO, IMAGE})
    },
    **{
        f"the name {name!r}": ("encoders", named(name), "encoders: .*cannot name")
        for name in (0, None, 1.5, True, ("a", "b"), "training", "", "a.b", ".", "forward", "parameters", "_modules",
                     "float", "T_destination", b"audio", "add_module", "dump_patches", "owned", "placeholder", "a,b")
    },
    **{
        f"the encoder {given!r}": ("encoders", audio(given), r"encoders\['audio'\]")
        for given in (3, None, 1.5, True, (), [], (AUDIO,), (AUDIO, 0, None), (AUDIO, 0, None, 1), [AUDIO, 3], {"x": 1},
                      nn.Linear, "", "encoders.audio.", ".encoders", "Encoders.audio", "encoders.audoi", b"audio",
                      ["encoders.audio", "nope"], (3, 0), (None, 0), "model.encoders.audio", print)
    },
    "a foreign module": ("encoders", audio(nn.Linear(8, 4)), "not a submodule of the model"),
    "the model itself": ("encoders", lambda m: audio(m), r"encoders\['audio'\].*not a submodule"),
    "an Encoder in an Encoder": ("encoders", lambda m: audio(Encoder(Encoder(AUDIO))), r"encoders\['audio'\]"),
    "one encoder twice": ("encoders", {"a": AUDIO, "b": AUDIO}, "encoders 'a' and 'b' overlap"),
    "one in another": ("encoders", {"a": "encoders", "b": AUDIO}, "encoders 'a' and 'b' overlap"),
    **{
        f"output {given!r}": ("encoders", lambda m, given=given: audio(output=given), r"output must")
        for given in (1.5, True, [0], {"a": 1}, {0}, (0, 1.5), (0, None), (0, True), print, b"x", ())
    },
    **{
        f"layout {given!r}": ("encoders", lambda m, given=given: audio(layout=given), r"layout must")
        for given in (3, "", "B", "D", "B D D", "B B D", "X", b"B D", ["B", "D"], ("B", "D"), "(B D) T", "(B T X) D",
                      "B, D", "b d", True, 1.5)
    },
    **{
        f"mask {given!r}": ("encoders", lambda m, given=given: audio(mask=given), r"mask must")
        for given in (3, True, ["mask"], 1.5, b"mask", "", torch.ones(2))
    },
    **{
        f"shared {given!r}": ("encoders", lambda m, given=given: audio(shared=given), r"shared must")
        for given in ("keep", "", True, None, ["leave"])
    },
    **{
        f"classifier {given!r}": ("encoders", audio(classifier=given), r"encoders\['audio'\].*classifier")
        for given in ("deep", "", 0, -1, 1.5, True, (), (nn.Linear(4, 3),), (nn.Linear(4, 3), "", 1),
                      (nn.Linear(4, 3), 3),
                      (nn.Linear(4, 3), "nope"), (nn.Linear(4, 3), None, None), ("attention", "0"), (4, "output"),
                      nn.Linear, print, [4], {"a": 1}, b"attention", "Attention")
    },
    "one classifier twice": (
        "encoders",
        {m: Encoder(f"encoders.{m}", classifier=SHARED) for m in ("audio", "image")},
        "'audio' and 'image' have the same classifier; give each its own",
    ),
    **{
        f"head {given!r}": ("head", given, "^head")
        for given in (3, "", "hed", 1.5, True, ["head"], nn.Linear, nn.Linear(8, 3), "head.weight", "encoders.audio",
                      "encoders.audio.2", b"head", ("head",), {"head": 1}, print)
    },
    "the model as its head": ("head", lambda m: m, "^head"),
    **{
        f"policy {given!r}": ("policy", given, "^policy")
        for given in ("cggm", "", 3, CGGM, Policy, [CGGM()], (CGGM(), UnimodalLosses()), {"coefficients": CGGM()}, True,
                      MIMO(), MIMO() + MMPareto(), functools.partial(CGGM))
    },
    **{
        f"task {given!r}": ("task", given, "^task")
        for given in ("translation", "", "Classification", 7, True, object(), Classification, Untitled(), Untitled,
                      F.cross_entropy, ["classification"], b"regression", nn.CrossEntropyLoss(), {"loss": F.l1_loss})
    },
    **{
        f"apply {given!r}": ("apply", given, "^apply must be 'auto' or one of")
        for given in ("everywhere", "", "Feature", None, 3, True, ["feature"], ("feature",), "response", b"auto")
    },
    **{
        f"fused {given!r}": ("fused", given, "^fused must be 'auto', True or False")
        for given in ("yes", "no", "", 1, 0, None, "True", [True], 1.0, torch.tensor(True), "Auto")
    },
    **{
        f"scores {given!r}": ("scores", given, "^scores must")
        for given in ("mask", "", "Masked", None, 3, True, ClassifierScores, MaskedScores, ["masked"], 0.1, b"masked")
    },
    **{
        f"optimizer {getattr(make, '__name__', make)}": ("optimizer", make, "^optimizer (must be|cannot be)")
        for make in (
            None, 3, "sgd", lambda m: torch.optim.SGD, lambda m: m, lambda m: list(m.parameters()),
            lambda m: torch.optim.LBFGS(m.parameters()), lambda m: torch.optim.SparseAdam(m.parameters()),
            lambda m: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(m.parameters()), 1),
        )
    },
    **{
        f"model {type(given).__name__}": ("model", given, "^model")
        for given in (None, 3, "model", nn.Linear, [nn.Linear(2, 2)], nn.Sequential(nn.Linear(2, 2)), nn.ModuleList(),
                      nn.ModuleDict(), torch.ones(2), print)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_constructor_refuses(case):
    argument, value, words = CASES[case]
    model = small_model()
    base = BASES["sgd"](model.parameters())
    ((inputs, target),) = batches(1)
    F.cross_entropy(model(*inputs), target).backward()
    base.step()
    base.momentum = None
    with refused(model, base, words):
        if callable(value) and getattr(value, "__name__", "") == "<lambda>":
            value = value(model)
        options = {"optimizer": base, "model": model, "encoders": audio(), "head": "head", "policy": CGGM()}
        CGGMOptimizerWrapper(**options | {argument: value})


#: Options that contradict each other, or the model.
TOGETHER = {
    "no coefficients to apply": (
        {"policy": UnimodalLosses(), "apply": "update"},
        "apply must.*no coefficients",
    ),
    "response without AGM": ({"apply": "response"}, "apply must"),
    "AGM elsewhere": ({"policy": AGM(), "apply": "update"}, "apply must"),
    "feature with MMPareto": ({"policy": MMPareto() + CGGM(), "apply": "feature"}, "apply must"),
    "masked with the default": ({"policy": None, "scores": "masked"}, "policy: .*which is the default"),
    "masked with DGL": ({"policy": DGL(), "scores": "masked"}, "policy: DGL"),
    "retrieval with OPM": ({"policy": OPM(), "scores": "retrieval"}, "policy: OPM"),
    "AGM without a head": ({"policy": AGM(), "head": None}, "^head: AGM"),
    "TCMax without a head": ({"policy": TCMax(), "head": None}, "^head: TCMax"),
    "no head for the classifiers": ({"policy": MLB(), "head": None}, r"encoders\['audio'\].*head is None"),
    "a rotation of a block": ({"policy": CGGM(lam=1), "head": "encoders"}, "^head: 'encoders'"),
    "fusion without a head": (
        {"policy": MLB(), "head": None, "encoders": audio(classifier="fusion")},
        r"encoders\['audio'\]|head",
    ),
    "a classifier of another shape for a rotation": (
        {"policy": CGGM(lam=1), "encoders": audio(classifier=nn.Linear(4, 3))},
        r"encoders\['audio'\].*output layer",
    ),
    "a classifier where there are none": (
        {"scores": "masked", "encoders": audio(classifier=4)},
        r"encoders\['audio'\]: it has a classifier",
    ),
    "several modules for MMPareto": (
        {"policy": MMPareto(), "encoders": audio(["encoders.audio.0", "encoders.audio.2"])},
        r"encoders\['audio'\] is made of 2 modules",
    ),
    "classifiers of an unknown modality": ({"classifiers": {"text": nn.Linear(4, 3)}}, "classifiers names"),
    "classifiers as a list": ({"classifiers": [nn.Linear(4, 3)]}, "classifiers"),
    "a rate twice": ({"classifier_lr": 0.1, "scores": "masked"}, "classifier_lr"),
    "an unknown argument": ({"encoder": {}}, "unexpected keyword argument 'encoder'"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", TOGETHER)
def test_the_constructor_refuses_together(case):
    options, words = TOGETHER[case]
    model = small_model()
    base = BASES["adamw"](model.parameters())
    with refused(model, base, words):
        CGGMOptimizerWrapper(base, model, **{"encoders": audio(), "head": "head", "policy": CGGM()} | options)
    optimizer = CGGMOptimizerWrapper(
        base, model, encoders=audio(), head="head"
    )  # the model can still be wrapped
    ((inputs, target),) = batches(1)
    backward(model, optimizer, inputs, target)
    optimizer.step()


def test_an_optimizer_of_another_model():
    model, other = small_model(), small_model(seed=1)
    base = BASES["sgd"](other.parameters())
    with refused(model, base, "optimizer"):
        CGGMOptimizerWrapper(base, model, encoders=audio(), head="head")
