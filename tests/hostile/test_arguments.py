"""Arguments of policies, scores and tasks that cannot be are refused by name, with what was found and is allowed."""

import re
from dataclasses import fields, is_dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from unchanged import REFUSALS

from cggm import (
    CGGM,
    Classification,
    ClassifierScores,
    MaskedScores,
    Policy,
    Regression,
    RetrievalScores,
    policies,
)
from cggm.policies import (
    AGM,
    DGL,
    MIMO,
    MLB,
    OGMGE,
    OPM,
    SMP,
    FeaturePareto,
    MMPareto,
    ModalityDropout,
    NormEqualization,
    TCMax,
    UnimodalLosses,
)
from cggm.tasks import Segmentation
from helpers import BASES, flat, small_model, train, wrap

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = (
    NAN,
    INF,
    -INF,
    True,
    "0.5",
    None,
    torch.tensor(0.5),
    [0.5],
    0.5j,
    Fraction(1, 2),
    Decimal("0.5"),
    b"1",
)
NO_COUNTS = (NAN, INF, 1.5, 2.0, True, "2", None, torch.tensor(2), [2], Fraction(2))
NO_FLAGS = ("no", "false", 0, 1, None, torch.tensor(True), [])

#: Class, argument, what it must be like, values out of its range; further arguments that it needs.
NUMBERS = [
    (CGGM, "rho", [-1, -1e-300]),
    (CGGM, "lam", [-0.1]),
    (CGGM, "smoothing", [-0.1, 1, 1.0]),
    (AGM, "alpha", [-1]),
    (OGMGE, "alpha", [-1]),
    (MLB, "alpha", [-1]),
    (MLB, "beta_max", [0.5, -2]),
    (MIMO, "lam", [-1]),
    (MIMO, "mu", [0, -1]),
    (OPM, "q", [-0.1, 1.1]),
    (OPM, "lam", [-0.1]),
    (DGL, "weight", [-1]),
    (UnimodalLosses, "weight", [-1]),
    (MMPareto, "gamma", [-1]),
    (FeaturePareto, "gamma", [-1]),
    (TCMax, "weight", [-0.1, 2]),
    (ModalityDropout, "p", [-0.1, 1.1]),
    (ModalityDropout, "fill", [-0.1, 1.1]),
    (ClassifierScores, "lr", [-0.1]),
    (RetrievalScores, "temperature", [0, -1]),
    (Classification, "label_smoothing", [2, -0.1]),
]
COUNTS = [
    (AGM, "permutations", [0, -1]),
    (SMP, "stage_steps", [0, -1]),
    (SMP, "epoch_steps", [0, -1]),
    (TCMax, "max_rows", [0, -1]),
    (MaskedScores, "every", [0, -1]),
    (Classification, "ignore_index", []),
    (Segmentation, "ignore_index", []),
]
FLAGS = [
    (CGGM, "stable"),
    (OGMGE, "noise"),
    (OGMGE, "split_head"),
    (NormEqualization, "bounded"),
    (TCMax, "sampled"),
    (Segmentation, "released"),
]
WORDS = [(CGGM, "direction"), (CGGM, "score_kind"), (AGM, "zero"), (Regression, "kind")]
OTHERS = [
    (MIMO, "optimum", 3),
    (MIMO, "optimum", "no"),
    (MIMO, "optimum", ()),
    (MIMO, "optimum", [0.1, 0.2]),
    (MIMO, "optimum", (0.1, NAN)),
    (MIMO, "optimum", (0.1, "0.2")),
    (MIMO, "optimum", torch.tensor([0.1, 0.2])),
    (Segmentation, "class_weights", [0.2, 0.8]),
    (Segmentation, "class_weights", ()),
    (Segmentation, "class_weights", (0.2, -1.0)),
    (Segmentation, "class_weights", (0.2, NAN)),
    (Segmentation, "class_weights", (0.2, "1")),
    (Segmentation, "class_weights", 0.5),
    (Segmentation, "class_weights", "12"),
    (Segmentation, "class_weights", torch.tensor([0.2, 0.8])),
    (Segmentation, "regions", ()),
    (Segmentation, "regions", ((1,), ())),
    (Segmentation, "regions", [(1,), (2,)]),
    (Segmentation, "regions", ([1], [2])),
    (Segmentation, "regions", (1, 2)),
    (Segmentation, "regions", ((1.5,),)),
    (Segmentation, "regions", ((-1,),)),
    (Segmentation, "regions", "12"),
    (Regression, "metric", "mae"),
    (Regression, "metric", 3),
    (Policy, "coefficients", 3),
    (Policy, "coefficients", UnimodalLosses()),
    (Policy, "coefficients", CGGM),
    (Policy, "combiner", CGGM()),
    (Policy, "combiner", "sum"),
    (Policy, "dropout", 0.2),
    (Policy, "objective", ModalityDropout(0.2)),
    (Policy, "objective", UnimodalLosses() + CGGM()),
]  # fmt: skip
NEEDED = {SMP: {"stage_steps": 2, "epoch_steps": 2}, ModalityDropout: {"p": 0.2}}
OPTIONAL = {(ClassifierScores, "lr"), (MIMO, "optimum")}


def cases():
    for cls, name, outside in NUMBERS:
        for value in (*NO_NUMBERS, *outside):
            if value is not None or (cls, name) not in OPTIONAL:
                yield cls, name, value
    for cls, name, outside in COUNTS:
        yield from ((cls, name, value) for value in (*NO_COUNTS, *outside))
    yield from ((cls, name, value) for cls, name in FLAGS for value in NO_FLAGS)
    for cls, name in WORDS:
        yield from ((cls, name, value) for value in ("sideways", "", 3, None, ["loss"], b"loss", True))
    yield from OTHERS


def shown(value):
    return type(value).__name__ if isinstance(value, type | Policy) else repr(value)


CASES = list(cases())


def test_every_argument_of_every_class_has_its_cases():
    listed = {(cls, name) for cls, name, _ in CASES}
    roles = [role for role in vars(policies).values() if isinstance(role, type) and is_dataclass(role)]
    for cls in (
        *roles,
        ClassifierScores,
        MaskedScores,
        RetrievalScores,
        Classification,
        Regression,
        Segmentation,
    ):
        assert {field.name for field in fields(cls)} <= {name for its, name in listed if its is cls}, cls


@pytest.mark.parametrize(
    ("cls", "name", "value"), CASES, ids=[f"{c.__name__}({n}={v!r})" for c, n, v in CASES]
)
def test_an_argument_that_cannot_be(cls, name, value):
    with pytest.raises(REFUSALS) as raised:
        cls(**{**NEEDED.get(cls, {}), name: value})
    message = str(raised.value)
    assert re.match(rf"(each class of )?{name}(\[\d\])? must be ", message)
    found = message.split(", got ")[1]
    assert found.startswith(shown(value)) or found in repr(value)  # or the wrong part of it
    assert "\n" not in message


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "make", [lambda x: CGGM(rho=x, lam=x, smoothing=x), lambda x: UnimodalLosses(weight=x) + MLB(x), MMPareto]
)
def test_a_number_of_numpys_is_a_number(make, kind):
    results = []
    for number in (kind(0.5), 0.5):
        model = small_model()
        train(model, wrap(model, BASES["sgd"](model.parameters()), make(number)), steps=2)
        results.append(flat(model))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "other", [3, None, "CGGM", CGGM, torch.ones(2), MLB(), OGMGE() + UnimodalLosses()], ids=repr
)
def test_what_cannot_be_added_to_a_policy(other):
    for policy in (CGGM(), UnimodalLosses() + CGGM()):
        with pytest.raises(
            REFUSALS, match=r"unsupported operand|act in the same place \((coefficients|combiner)\)"
        ):
            policy + other
