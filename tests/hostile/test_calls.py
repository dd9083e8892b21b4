"""The wrapper's other methods refuse by name what cannot be, and change nothing: the step after it is the same."""

import copy

import pytest
import torch
from torch.nn import functional as F
from training import finish, ready
from unchanged import refused

from helpers import batches, flat

NAN = float("nan")
SETTERS = {
    **{
        f"max_norm {v!r}": ("max_norm", v)
        for v in (0, -1, NAN, float("inf"), True, "1", [1.0], 1j, torch.tensor(1.0))
    },
    **{f"active {v!r}": ("active", v) for v in ("no", 0, 1, None, torch.tensor(True), [])},
    **{f"record {v!r}": ("record", v) for v in ("no", 0, 1, None, torch.tensor(True), [])},
}


@pytest.mark.parametrize("case", SETTERS)
def test_setters(case):
    name, value = SETTERS[case]
    model, optimizer, loss, target = ready()
    kept = getattr(optimizer, name)
    with refused(model, optimizer.base, f"^{name} must be"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) is kept
    finish(model, optimizer, loss, target)


def balanced(optimizer, loss, target):
    return optimizer.balance(loss, target)


def gone_backward(optimizer, loss, target):
    optimizer.balance(loss, target).backward()


METHODS = {
    "step before backward": (balanced, lambda o: o.step(), "a balanced loss is pending"),
    "modulate before backward": (balanced, lambda o: o.modulate(), "a balanced loss is pending"),
    "step with a number": (gone_backward, lambda o: o.step(3), "closure must be a function.*int"),
    "step with a loss": (gone_backward, lambda o: o.step(torch.ones(())), "closure must be a function.*Tensor"),
    "step with a string": (gone_backward, lambda o: o.step("closure"), "closure must be a function.*str"),
    "zero_grad 'no'": (gone_backward, lambda o: o.zero_grad("no"), "set_to_none must be True or False.*'no'"),
    "zero_grad 0": (gone_backward, lambda o: o.zero_grad(0), "set_to_none must be True or False.*0"),
    "zero_grad None": (gone_backward, lambda o: o.zero_grad(None), "set_to_none must be True or False.*None"),
    "record in a step": (balanced, lambda o: setattr(o, "record", True), "record"),
    "explain in a step": (balanced, lambda o: o.explain(lambda: None, None), r"explain\(\)"),
    "relearn in a step": (balanced, lambda o: o.relearn([], [], {}), r"relearn\(\)"),
    "explain a loss": (lambda *_: 0, lambda o: o.explain(torch.ones(()), None), "forward must be a function.*Tensor"),
    "explain None": (lambda *_: 0, lambda o: o.explain(None, None), "forward must be a function.*NoneType"),
    "explain a number": (lambda *_: 0, lambda o: o.explain(lambda: 3.0, None), "loss must be a tensor"),
    "explain without a forward": (lambda *_: 0, lambda o: o.explain(lambda: torch.ones(()), 0), "a loss with a graph"),
    "relearn a path": (lambda *_: 0, lambda o: o.relearn([], [], "first.pt"), "initial must"),
    "relearn None": (lambda *_: 0, lambda o: o.relearn([], [], None), "initial must"),
    "relearn nothing": (lambda *_: 0, lambda o: o.relearn([], [], {}), "initial must"),
    **{
        f"relearn strength {s!r}": (lambda *_: 0, lambda o, s=s: o.relearn([], [], {}, s), "strength must")
        for s in (-1, NAN, "3", True, None, torch.tensor(3.0))
    },
    **{
        f"add_param_group {g!r}": (lambda *_: 0, lambda o, g=g: o.add_param_group(g), "param_group|parameter|optimizer")
        for g in (3, None, [], "x", {}, {"params": [3]}, {"params": "x"}, {"params": {torch.ones(2)}})
    },
}  # fmt: skip


@pytest.mark.parametrize("case", METHODS)
def test_methods(case):
    before, call, words = METHODS[case]
    results = []
    for wrong in (False, True):
        model, optimizer, loss, target = ready()
        pending = before(optimizer, loss, target)
        if wrong:
            with refused(model, optimizer.base, words):
                call(optimizer)
        if isinstance(pending, torch.Tensor):
            pending.backward()
        if before in (balanced, gone_backward):
            optimizer.step()
        else:
            ((inputs, target),) = batches(1)
            finish(model, optimizer, F.cross_entropy(model(*inputs), target), target)
        results.append(flat(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("broken", [{}, "nothing", "shape", "text", None])
def test_relearn_with_other_weights(broken):
    model, optimizer, _, _ = ready()
    initial = copy.deepcopy(model.state_dict())
    data = list(batches(1))
    key = "encoders.audio.0.weight"
    if broken == "nothing":
        del initial[key]
    elif broken is not None and not isinstance(broken, dict):
        initial[key] = initial[key][1:] if broken == "shape" else "weights"
    given = (broken, data) if isinstance(broken, dict) else (initial, data if broken else [])
    with refused(model, optimizer.base, rf"initial must hold.*{key}|train (holds no batch|must)"):
        optimizer.relearn(given[1], given[1], given[0])


REMAINING = ("modulate", "step", "zero_grad")  # they do what the wrapped optimizer does, or nothing
GONE = ("balance", "explain", "relearn", "flatten_gradients", "state_dict", "load_state_dict")


@pytest.mark.parametrize("call", [*REMAINING, *GONE])
def test_after_detach(call):
    model, optimizer, loss, target = ready()
    optimizer.detach()
    before = flat(model)
    arguments = {"balance": (loss, target), "explain": (lambda: loss, target), "relearn": ([], [], {})}
    arguments["load_state_dict"] = ({"state": {}, "param_groups": []},)
    if call in REMAINING:
        getattr(optimizer, call)()  # what the wrapped optimizer does, or nothing
    else:
        with pytest.raises(RuntimeError, match=rf"^{call}\(\) after detach\(\): .*optimizer.base"):
            getattr(optimizer, call)(*arguments.get(call, ()))
    assert torch.equal(flat(model), before)
