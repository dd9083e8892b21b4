"""Invalid state dicts raise an error that names the field, and nothing changes."""

import copy

import pytest
import torch

from cggm import CGGM, CGGMOptimizerWrapper
from cggm.policies import AGM
from helpers import BASES, small_model, train, wrap

VALUE = "unimodal_classifier"
KINDS = {
    **BASES,
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
}
NAN = float("nan")


def trained(seed=3, base="sgd", **options):
    model = small_model(seed=seed)
    optimizer = wrap(model, KINDS[base](model.parameters()), **options)
    train(model, optimizer, steps=2)
    return model, optimizer


def snapshot(model, optimizer):
    """Values and options."""
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def entry(place, field, change):
    """Change one field in the state of one classifier parameter, `place` counted from the first or the last one."""

    def spoil(state):
        keys = [key for key, its in state["state"].items() if VALUE in its]
        state["state"][keys[place]][field] = change(state["state"][keys[place]][field])
        return state

    return spoil


def at(path, value):
    def spoil(state):
        *way, last = path
        inner = state
        for step in way:
            inner = inner[step]
        inner[last] = value(inner[last]) if callable(value) else value
        return state

    return spoil


SPOILS = {
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "complex": lambda v: v + 1j,
    "integer": lambda v: v.long(),
    "bool": lambda v: v > 0,
    "list": lambda v: v.tolist(),
    "None": lambda v: None,
    "text": lambda v: "values",
}
SHAPES = [(16, 9), (7, 4), (5,), (), (0, 4), (8, 0), (6, 4, 1), (1, 1)]
CASES = {
    **{
        f"{kind} classifier value {place}": (entry(place, VALUE, change), r"classifiers' parameter '\w+\.")
        for kind, change in SPOILS.items()
        for place in (0, 1, 4, -1)
    },
    **{
        f"{kind} {field}": (entry(0, f"policy.{field}", change), rf"'policy.{field}' must be a dense")
        for kind, change in SPOILS.items()
        for field in ("scores", "weights", "steps")
    },
    **{
        f"hidden weight {shape}": (
            entry(0, VALUE, lambda v, shape=shape: torch.zeros(shape)),
            r"'audio.hidden.weight' was saved as .* but is \[8, 4\] here",
        )
        for shape in SHAPES
    },
    **{
        f"{field} {shape}": (
            entry(0, f"policy.{field}", lambda v, shape=shape: torch.zeros(shape)),
            rf"'policy.{field}' was saved as",
        )
        for field in ("scores", "weights")
        for shape in [(3,), (1,), (), (2, 2)]
    },
    **{
        f"a {type(given).__name__} for the whole": (
            lambda state, given=given: given,
            f"state_dict must be a dictionary, got {type(given).__name__}; pass what .* torch.load",
        )
        for given in ("checkpoint.pt", None, [1], 3, (1, 2), torch.zeros(2))
    },
    **{
        f"{field} a {type(given).__name__}": (
            at([field], given),
            rf"state_dict\['{field}'\] must be .* got {type(given).__name__}",
        )
        for field, wrong in {"state": [[], None, "x", 3], "param_groups": [{}, None, "x", 3]}.items()
        for given in wrong
    },
    **{
        f"an entry that is {given!r}": (
            lambda state, given=given: state | {"state": state["state"] | {0: given}},
            r"state_dict\['state'\]\[0\] must be a dictionary",
        )
        for given in (None, 1, [], "x")
    },
    **{
        f"a group that is {given!r}": (
            at(["param_groups", 0], given),
            r"state_dict\['param_groups'\]\[0\] must be a dictionary with a list 'params'",
        )
        for given in (None, 1, [], {}, {"params": 1})
    },
    **{
        f"lr {given!r}": (at(["param_groups", 0, "lr"], given), r"\['lr'\] must be a number, got")
        for given in ("fast", None, True, [0.1])
    },
    "no state": (lambda s: {"param_groups": s["param_groups"]}, "no field 'state'"),
    "no groups": (lambda s: {"state": s["state"]}, "no field 'param_groups'"),
    "empty": (lambda s: {}, "no field 'state'"),
    "fewer parameters": (at(["param_groups", 0, "params"], lambda p: p[:-1]), r"holds \[\d+, 8\] parameters"),
    "more parameters": (
        at(["param_groups", 1, "params"], lambda p: [*p, 99]),
        r"holds \[\d+, 9\] parameters",
    ),
    "fewer groups": (at(["param_groups"], lambda g: g[:1]), "'param_groups'"),
    "more groups": (at(["param_groups"], lambda g: [*g, g[1]]), "'param_groups'"),
    "another momentum": (
        at(["state", 0, "momentum_buffer"], torch.zeros(99)),
        "'momentum_buffer' of parameter 0",
    ),
    "names as text": (entry(0, "modalities", lambda v: "audio,image"), "'modalities' must be"),
    "other names": (
        entry(0, "modalities", lambda v: torch.tensor(list(b"image,audio"), dtype=torch.uint8)),
        r"saved with modalities \['image', 'audio'\], but they are \['audio', 'image'\] here",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_that_does_not_fit_changes_nothing(case):
    spoil, message = CASES[case]
    hostile = spoil(copy.deepcopy(trained(seed=3)[1].state_dict()))
    model, optimizer = trained(seed=4)
    before = snapshot(model, optimizer)
    held = optimizer.state, optimizer.param_groups
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(hostile)
    torch.testing.assert_close(snapshot(model, optimizer), before, rtol=0, atol=0)
    assert (optimizer.state, optimizer.param_groups) == held
    train(model, optimizer, steps=1)


@pytest.mark.parametrize("here", ["sgd", "adamw", "rmsprop", "adagrad", "adadelta"])
@pytest.mark.parametrize("saved", ["sgd", "adamw", "rmsprop", "adagrad", "adadelta"])
def test_the_state_of_another_kind_of_optimizer(saved, here):
    if saved == here:
        return
    state = trained(3, saved)[1].state_dict()
    model, optimizer = trained(4, here)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"was not saved by .* make the optimizer of the same class"):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(snapshot(model, optimizer), before, rtol=0, atol=0)
    train(model, optimizer, steps=1)


@pytest.mark.parametrize("policies", [(CGGM(), AGM()), (AGM(), CGGM())])
def test_the_state_of_another_policy(policies):
    saved, here = policies
    model, optimizer = trained(4, policy=here)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="another policy"):
        optimizer.load_state_dict(trained(3, policy=saved)[1].state_dict())
    torch.testing.assert_close(snapshot(model, optimizer), before, rtol=0, atol=0)


def test_a_checkpoint_without_names_is_an_older_versions():
    saved = copy.deepcopy(trained()[1].state_dict())
    for its in saved["state"].values():
        its.pop("modalities", None)
    trained(4)[1].load_state_dict(saved)


def test_not_a_number_is_loaded_as_any_other():
    model, optimizer = trained(4)
    optimizer.load_state_dict(entry(0, VALUE, lambda v: v * NAN)(copy.deepcopy(optimizer.state_dict())))
    assert model.unimodal_classifiers.audio.hidden.weight.isnan().all()


def test_loading_under_inference_mode():
    saved = copy.deepcopy(trained(3, "adamw")[1].state_dict())
    model, optimizer = trained(4, "adamw")
    with torch.inference_mode():
        optimizer.load_state_dict(saved)
    train(model, optimizer, steps=1)


def test_permuted_modalities_swap_no_classifiers():
    saved = trained()[1].state_dict()
    model = small_model(seed=4)
    base = BASES["sgd"](model.parameters())
    permuted = {"image": "encoders.image", "audio": "encoders.audio"}
    optimizer = CGGMOptimizerWrapper(base, model, encoders=permuted, head="head")
    with pytest.raises(ValueError, match="same names in the same order"):
        optimizer.load_state_dict(saved)
