"""Every operator refuses every argument that cannot be, by name, through its public function, and changes no tensor."""

import re

import numpy as np
import pytest
import torch
from unchanged import REFUSALS, bits

import cggm_ops
from cggm_ops import AdamSettings, Modulation, SGDSettings

NAN, INF = float("nan"), float("inf")


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lists(*names):
    return {name: [values(4, 3, seed=i), values(5, seed=i)] for i, name in enumerate(names)}


def steps():
    return [torch.tensor(3.0), torch.tensor(3.0)]


def scales():
    return {"owner": [0, 1], "grad_scale": torch.full((2,), 0.5), "update_scale": torch.full((2,), 2.0)}


def adamw_(params, grads, owner, grad_scale, update_scale, **states):
    modulation = Modulation(owner=owner, grad_scale=grad_scale, update_scale=update_scale)
    cggm_ops.adamw_(params, grads, **states, settings=AdamSettings(lr=0.1), modulation=modulation)


def sgd_(params, grads, owner, grad_scale, update_scale, **states):
    modulation = Modulation(owner=owner, grad_scale=grad_scale, update_scale=update_scale)
    cggm_ops.sgd_(params, grads, **states, settings=SGDSettings(lr=0.1, momentum=0.9), modulation=modulation)


def segment_gram(first, second):
    return cggm_ops.segment_gram([first, second])


def segment_combine_(first, second, weights, noise, deviations):
    cggm_ops.segment_combine_([first, second], weights, noise=noise, deviations=deviations)


#: Operator -> its function, and arguments that it takes.
OPERATORS = {
    "scale_": (cggm_ops.scale_, lambda: lists("grads") | {"owner": [0, 1], "coefficients": torch.full((2,), 2.0)}),
    "modulate_": (
        cggm_ops.modulate_,
        lambda: lists("grads")
        | {"owner": [0, 1], "coefficients": torch.full((2,), 2.0), "fusion": values(6), "unimodal": list(values(2, 6))},
    ),
    "batched_cosine": (cggm_ops.batched_cosine, lambda: {"fusion": values(6), "unimodal": list(values(2, 6))}),
    "segment_gram": (segment_gram, lambda: lists("first", "second")),
    "segment_combine_": (
        segment_combine_,
        lambda: lists("first", "second", "noise") | {"weights": torch.ones(2, 2), "deviations": torch.ones(2)},
    ),
    "adamw_": (adamw_, lambda: lists("params", "grads", "exp_avgs", "exp_avg_sqs") | {"steps": steps()} | scales()),
    "sgd_": (sgd_, lambda: lists("params", "grads", "momentum_buffers") | scales()),
}  # fmt: skip

# What is done to one tensor, in a list or alone. `DENSE`: only to tensors that change, others may have gaps.
WRONG = {
    "int64": lambda x: x.long(),
    "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x + 0j,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "None": lambda x: None,
    "a number": lambda x: 0.5,
    "a list": lambda x: x.tolist() if x.ndim else [x.item()],
    "NumPy": lambda x: x.numpy(),
    "a string": lambda x: "tensor",
}
SHAPES = {"longer": lambda x: torch.cat([x, x]), "empty": lambda x: x[:0]}
DENSE = {
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
}
OWNERS = {
    "too large": [0, 2], "too small": [0, -2], "too short": [0], "too long": [0, 1, 0], "floats": [0.0, 1.0],
    "strings": ["audio", "image"], "a number": 1, "None in it": [0, None], "huge": [0, 2**70], "a string": "01",
    "NaN": [0, NAN],
}  # fmt: skip
TENSORS = ("coefficients", "fusion", "weights", "deviations", "grad_scale", "update_scale")
CHANGED = {
    "scale_": ("grads",),
    "modulate_": ("grads",),
    "segment_combine_": ("first",),
    "adamw_": ("params", "exp_avgs", "exp_avg_sqs"),
    "sgd_": ("params", "momentum_buffers"),
}
# What the message calls an argument, or the list that it does not fit.
CALLED = {
    "first": "^sets",
    "second": "^(sets|others)",
    "noise": "^(sets|others|noise)",
    "deviations": "^(noise and )?deviations",
    "params": "param",
}
FINE = {("None", "grad_scale"), ("None", "update_scale")}
LISTS = {
    "one too few": lambda given: given[1:],
    "None for the list": lambda given: None,
    "a number for the list": lambda given: 3,
}


def cases():
    for operator, (_, make) in OPERATORS.items():
        for name in make():
            if name == "owner":
                kinds = {kind: lambda given, owner=owner: owner for kind, owner in OWNERS.items()}
            elif name in TENSORS:
                sized = name in ("fusion", "weights", "deviations")
                kinds = WRONG | (SHAPES if sized else {})
            else:
                free = operator in ("scale_", "modulate_") and name == "grads"  # of any shapes
                each = WRONG | ({} if free or name == "steps" else SHAPES)
                each |= DENSE if name in CHANGED.get(operator, ()) else {}
                kinds = {k: lambda given, f=f: [f(given[0]), *given[1:]] for k, f in each.items()} | LISTS
                if name in CHANGED.get(operator, ()):
                    kinds["the same twice"] = lambda given: [given[0], given[0]]
                if name in CHANGED.get(operator, ())[:1]:
                    kinds["requires grad"] = lambda given: [x.requires_grad_() for x in given]
            for kind, change in kinds.items():
                if (kind, name) not in FINE and (operator, kind) != ("batched_cosine", "one too few"):
                    yield operator, name, kind, change


CASES = list(cases())


def everything(arguments):
    return [bits(x) for value in arguments.values() for x in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize(
    ("operator", "name", "kind", "change"), CASES, ids=[f"{o}-{n}-{k}" for o, n, k, _ in CASES]
)
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_an_argument_that_cannot_be(operator, name, kind, change, recording):
    function, make = OPERATORS[operator]
    arguments = make()
    arguments[name] = change(arguments[name])
    if kind == "requires grad" and not recording:
        return
    before = everything(arguments)
    with torch.set_grad_enabled(recording), pytest.raises(REFUSALS) as raised:
        function(**arguments)
    assert everything(arguments) == before
    message = str(raised.value)
    assert re.search(CALLED.get(name, name), message), message
    assert len(message) < 500
    assert "\n" not in message


def test_the_arguments_are_right_as_they_are():
    for function, make in OPERATORS.values():
        function(**make())


SETTINGS = {
    **{
        f"{cls.__name__}({name}={value!r})": (cls, name, value)
        for cls, names in {
            AdamSettings: ("lr", "eps", "weight_decay"),
            SGDSettings: ("lr", "momentum", "dampening", "weight_decay"),
        }.items()
        for name in names
        for value in (NAN, INF, -0.1, "0.1", None, True, torch.tensor(0.1), [0.1], 1j)
    },
    **{
        f"AdamSettings(betas={value!r})": (AdamSettings, "betas", value)
        for value in (0.9, (0.9,), (0.9, 0.99, 0.999), [0.9, 0.99], None, "09", torch.ones(2))
    },
    **{
        f"AdamSettings({name}={number!r})": (AdamSettings, name, number)
        for name in ("beta1", "beta2")
        for number in (1, 1.0, -0.1, NAN, "0.9", None, True)
    },
    **{
        f"{cls.__name__}({name}={value!r})": (cls, name, value)
        for cls, names in {AdamSettings: ("decoupled", "maximize"), SGDSettings: ("nesterov", "maximize")}.items()
        for name in names
        for value in ("no", 0, 1, None, torch.tensor(True))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be(case):
    cls, name, value = SETTINGS[case]
    given = {name: value}
    if name in ("beta1", "beta2"):
        given = {"betas": (value, 0.9) if name == "beta1" else (0.9, value)}
    with pytest.raises(
        (ValueError, TypeError), match=rf"^{name} must be .*, found {re.escape(repr(value))}$"
    ):
        cls(**{"lr": 0.1, **given})


def test_a_number_of_numpys_is_a_number():
    for recording in (True, False):
        results = []
        for kind in (np.float32, float):
            arguments = OPERATORS["sgd_"][1]()
            settings = SGDSettings(lr=kind(0.5), momentum=kind(0.25), weight_decay=kind(0))
            with torch.set_grad_enabled(recording):
                cggm_ops.sgd_(
                    arguments["params"],
                    arguments["grads"],
                    momentum_buffers=arguments["momentum_buffers"],
                    settings=settings,
                )
            results.append(everything(arguments))
        assert results[0] == results[1]
