"""The short way into the compiled kernels: it serves plain CPU tensors, and only them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cggm_ops
from cggm_ops import SGDSettings, direct

pytestmark = pytest.mark.skipif(cggm_ops.build_info() is None, reason="no compiled extension here")


@pytest.fixture
def calls(monkeypatch):
    """Record what the compiled functions answer."""
    answers = []
    for name, function in list(direct.FUNCTIONS.items()):

        def recorded(*arguments, function=function):
            answers.append(function(*arguments))
            return answers[-1]

        monkeypatch.setitem(direct.FUNCTIONS, name, recorded)
    return answers


def step(param, grad):
    with torch.no_grad():
        cggm_ops.sgd_([param], [grad], settings=SGDSettings(lr=1.0))
    return param


def test_plain_tensors_and_parameters_take_it(calls):
    param = torch.nn.Parameter(torch.ones(3))
    version = param._version
    assert torch.equal(step(param, torch.ones(3)), torch.zeros(3))
    assert calls == [True]
    assert param._version == version + 1


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(3, 2).t(),
        torch.ones(2, 3).as_subclass(Subclass),
        torch.ones(4, 3)[::2],
    ],
    ids=["strides", "subclass", "gaps"],
)
def test_other_tensors_go_through_the_dispatcher(calls, grad):
    assert torch.equal(step(torch.ones(2, 3), grad), torch.zeros(2, 3))
    assert calls == [False]


def test_a_number_stored_as_its_negative(calls):
    grad = torch.tensor(1 - 2j).conj().imag
    assert grad.is_neg()
    assert step(torch.tensor(3.0), grad) == 1.0
    assert calls == [False]


def test_refusals_are_the_same(calls):
    with pytest.raises(ValueError, match=r"grads\[0\] must have the shape"):
        step(torch.ones(2), torch.ones(3))
    assert calls == []


def test_a_mode_sees_the_operator(calls):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(function._opname)
            return function(*arguments, **(options or {}))

    with Mode():
        step(torch.ones(2), torch.ones(2))
    assert "sgd_" in seen
    assert calls == []


def test_a_profiler_sees_the_operator(calls):
    with torch.profiler.profile() as profile:
        step(torch.ones(2), torch.ones(2))
    assert "cggm_ops::sgd_" in {event.key for event in profile.key_averages()}


def test_a_forced_reference_is_not_passed_by(calls):
    with cggm_ops.use_backend("reference"):
        step(torch.ones(2), torch.ones(2))
    assert calls == []
    assert "sgd_" in direct.FUNCTIONS


def test_a_meta_tensor_is_refused_as_before(calls):
    with pytest.raises((ValueError, NotImplementedError, RuntimeError)):
        step(torch.ones(2), torch.ones(2, device="meta"))
