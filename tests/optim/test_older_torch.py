"""What older versions of torch do differently, on the version at hand."""

import pytest
import torch

from cggm import CGGM
from cggm.optim import fused
from cggm.optim.fused_rules import RULES
from cggm.torch_private import make_adam_state
from helpers import flat, small_model, train, wrap


@pytest.mark.parametrize(("kind", "decoupled"), [(torch.optim.Adam, False), (torch.optim.AdamW, True)])
def test_the_class_decides_where_a_group_has_no_option_for_it(kind, decoupled):
    optimizer = kind([torch.nn.Parameter(torch.ones(2))], weight_decay=0.1)
    group = dict(optimizer.param_groups[0])
    group.pop("decoupled_weight_decay", None)
    read, _ = RULES[kind]
    assert read(group).decoupled is decoupled


@pytest.mark.parametrize("extra", [False, True])
def test_state_is_made_whatever_the_number_of_lists(extra):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adam([parameter])
    if extra:  # as AdamW of torch 2.6
        make = optimizer._init_group
        optimizer._init_group = lambda group, a, b, amsgrad, c, d, e, f: make(group, a, b, c, d, e, f)
    make_adam_state(optimizer)
    assert {"step", "exp_avg", "exp_avg_sq"} == set(optimizer.state[parameter])


@pytest.mark.parametrize("kind", RULES)
def test_a_fused_step_is_the_optimizers_own_whatever_serves_the_operators(kind, monkeypatch):
    monkeypatch.setattr(fused, "backend", lambda _: "compiled")  # also where the reference serves
    results = []
    for is_fused in (True, False):
        model = small_model()
        base = kind(model.parameters(), lr=0.01, weight_decay=0.1)
        optimizer = wrap(model, base, CGGM(smoothing=0.3), apply="gradient", fused=is_fused)
        assert optimizer.uses_fused_step == is_fused
        train(model, optimizer, steps=5)
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
