"""adamw_ and sgd_: torch.optim in float64, hand-worked values, scales, unusual strides."""

import itertools

import pytest
import torch
from cases import OWNER, each_dtype, each_implementation, gradients, random

from cggm_ops import AdamSettings, Modulation, SGDSettings, adamw_, sgd_
from tolerances import assert_accurate

GRAD_SCALE, UPDATE_SCALE = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([1.5, 0.25, 0.0], dtype=torch.float64)
ADAM = {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
ADAMS = list(itertools.product((True, False), (True, False)))  # decoupled, maximize
SGDS = [  # momentum, dampening, weight decay, nesterov, maximize
    (0.0, 0.0, 0.0, False, False),
    (0.0, 0.0, 0.1, False, True),
    (0.9, 0.0, 0.1, False, False),
    (0.9, 0.3, 0.0, False, False),
    (0.9, 0.0, 0.1, True, False),
]


def adam_case(dtype):
    params, grads = gradients(dtype), gradients(dtype, seed=10)
    exp_avgs, exp_avg_sqs = gradients(dtype, seed=20), [g.abs() for g in gradients(dtype, seed=30)]
    return params, grads, exp_avgs, exp_avg_sqs, [torch.tensor(float(i)) for i in range(len(params))]


def torch_adam(case, scale, update_scale, decoupled, maximize):
    """Take steps with torch's rule, tensor by tensor, on modulated gradients, with a learning rate per modality."""
    for param, grad, exp_avg, exp_avg_sq, step, owner in zip(*case, OWNER, strict=True):
        rate = 1.0 if owner < 0 else update_scale[owner].item()
        optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
            [parameter := torch.nn.Parameter(param)],
            lr=ADAM["lr"] * rate,
            betas=(ADAM["beta1"], ADAM["beta2"]),
            eps=ADAM["eps"],
            weight_decay=ADAM["weight_decay"],
            maximize=maximize,
            foreach=False,
        )
        optimizer.state[parameter] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        parameter.grad = grad if owner < 0 else grad * scale[owner].to(grad.dtype)
        optimizer.step()


def copy(case, dtype=None):
    return tuple([tensor.to(dtype or tensor.dtype, copy=True) for tensor in tensors] for tensors in case)


@each_implementation
@each_dtype
@pytest.mark.parametrize(("decoupled", "maximize"), ADAMS)
def test_adam_is_that_of_torch(implementation, dtype, decoupled, maximize):
    case = adam_case(dtype)
    plain, exact = copy(case), copy(case, torch.float64)
    for others in (plain, exact):
        torch_adam(others, GRAD_SCALE, UPDATE_SCALE, decoupled, maximize)
    implementation.ops.adamw_(*case, OWNER, GRAD_SCALE, UPDATE_SCALE, *ADAM.values(), decoupled, maximize)
    for quantity in (0, 2, 3):
        for actual, one, other in zip(case[quantity], plain[quantity], exact[quantity], strict=True):
            assert_accurate("optimizer step", dtype, actual=actual, plain=one, exact=other)
    assert [step.item() for step in case[4]] == [i + 1.0 for i in range(len(case[4]))]


def torch_sgd(params, grads, buffers, scale, rates, options):
    momentum, dampening, weight_decay, nesterov, maximize = options
    for index, (param, grad, owner) in enumerate(zip(params, grads, OWNER, strict=True)):
        rate = 1.0 if owner < 0 else rates[owner].item()
        optimizer = torch.optim.SGD(
            [parameter := torch.nn.Parameter(param)],
            lr=0.1 * rate,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=False,
        )
        if buffers is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffers[index]
        parameter.grad = grad if owner < 0 else grad * scale[owner].to(grad.dtype)
        optimizer.step()
        if momentum:
            yield optimizer.state[parameter]["momentum_buffer"]


@each_implementation
@each_dtype
@pytest.mark.parametrize("options", SGDS, ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_sgd_is_that_of_torch(implementation, dtype, options, first):
    case = (gradients(dtype), gradients(dtype, seed=10), gradients(dtype, seed=20))
    plain, exact = copy(case), copy(case, torch.float64)
    wanted = [
        list(torch_sgd(*others[:2], None if first else others[2], GRAD_SCALE, UPDATE_SCALE, options))
        for others in (plain, exact)
    ]
    momentum, dampening, weight_decay, nesterov, maximize = options
    buffers = case[2] if momentum else []
    implementation.ops.sgd_(
        *case[:2], buffers, OWNER, GRAD_SCALE, UPDATE_SCALE, 0.1, momentum, dampening, weight_decay,
        nesterov, maximize, first,
    )  # fmt: skip
    for actual, one, other in zip(case[0] + buffers, plain[0] + wanted[0], exact[0] + wanted[1], strict=True):
        assert_accurate("optimizer step", dtype, actual=actual, plain=one, exact=other)


def test_a_first_step_of_adam_by_hand():
    """m = 0.1 g, v = 0.001 g², both corrected to g and g²: the step is lr times the sign of g, halved by the scale."""
    param, grad = torch.tensor([1.0, 1.0]), torch.tensor([3.0, -4.0])
    exp_avg, exp_avg_sq, step = torch.zeros(2), torch.zeros(2), torch.tensor(0.0)
    adamw_(
        [param],
        [grad],
        exp_avgs=[exp_avg],
        exp_avg_sqs=[exp_avg_sq],
        steps=[step],
        settings=AdamSettings(lr=0.1, eps=0.0),
        modulation=Modulation(owner=[0], grad_scale=torch.tensor([2.0]), update_scale=torch.tensor([0.5])),
    )
    torch.testing.assert_close(param, torch.tensor([0.95, 1.05]))
    torch.testing.assert_close(exp_avg, torch.tensor([0.6, -0.8]))
    torch.testing.assert_close(exp_avg_sq, torch.tensor([0.036, 0.064]))
    assert grad.tolist() == [3.0, -4.0]
    assert step.item() == 1.0


@each_implementation
def test_gradients_may_lie_in_another_order(implementation):
    param = random(6, 5).t()
    expected, grad = param.clone(), random(5, 6)
    arguments = [], [], None, None, 0.5, 0.0, 0.0, 0.0, False, False, False
    implementation.ops.sgd_([param], [grad], *arguments)
    torch.testing.assert_close(param, expected - 0.5 * grad)


def test_parameters_that_autograd_follows():
    leaf = random(3).requires_grad_()
    with pytest.raises(RuntimeError, match="params holds a tensor that requires grad"):
        sgd_([leaf], [random(3)], settings=SGDSettings(lr=0.1))
    version = leaf._version
    with torch.no_grad():
        sgd_([leaf], [random(3)], settings=SGDSettings(lr=0.1))
    assert leaf._version > version
