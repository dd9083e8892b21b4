"""Every learning-rate scheduler of torch drives the wrapper as it drives the plain optimizer."""

import copy
import inspect
import warnings

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from helpers import backward, batches, flat, small_model, train, wrap

MAKE = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LinearLR": lambda o: LinearLR(o, 0.1, total_iters=4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, T_max=5)], milestones=[3]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
}


def test_no_scheduler_of_torch_is_left_out():
    classes = [c for c in vars(lr_scheduler).values() if inspect.isclass(c) and issubclass(c, LRScheduler)]
    assert {c.__name__ for c in classes} - {"LRScheduler", "_LRScheduler"} <= set(MAKE)


def trajectory(name, wrapped):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = wrap(model, optimizer) if wrapped else optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "step() was not called before ..." above all
        warnings.filterwarnings("ignore", "The epoch parameter")  # SequentialLR of torch 2.6
        scheduler = MAKE[name](optimizer)
        rates = []
        for step, (inputs, target) in enumerate(batches(8)):
            optimizer.zero_grad()
            if wrapped:
                backward(model, optimizer, inputs, target)
            else:
                torch.nn.functional.cross_entropy(model(*inputs), target).backward()
            optimizer.step()
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
            if step == 4:  # a checkpoint is taken and loaded in mid-run
                saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
    return rates, optimizer


@pytest.mark.parametrize("name", MAKE)
def test_the_same_rates_as_on_the_plain_optimizer(name):
    plain, _ = trajectory(name, wrapped=False)
    wrapped, optimizer = trajectory(name, wrapped=True)
    assert wrapped == plain
    assert len(set(plain)) > 1
    # the classifiers' group follows the same schedule
    assert optimizer.param_groups[1]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_scheduler_made_of_the_wrapped_optimizer_reaches_the_wrapper():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wrap(model, base)
    scheduler = lr_scheduler.StepLR(base, 1, gamma=0.5)
    train(model, optimizer, steps=1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_stochastic_weight_averaging_leaves_the_training_alone():
    """An averaged model is a copy: its classifiers and junctions are its own."""
    results = []
    for averaging in (False, True):
        model = small_model()
        optimizer = wrap(model)
        average = swa_utils.AveragedModel(model) if averaging else None
        for inputs, target in batches(4):
            optimizer.zero_grad()
            backward(model, optimizer, inputs, target)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
        results.append(flat(model))
    assert torch.equal(*results)
    assert not torch.equal(average.module.head.weight, model.head.weight)
