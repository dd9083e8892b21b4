"""Checkpoints through torch.distributed.checkpoint, over changing numbers of processes, and to and from plain ones."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_sharding import balanced, sharded_model, steps, whole
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import processes
from cggm import CGGM, UnimodalLosses
from cggm.checkpoint import plain_state_dict
from helpers import flat, small_model, train, wrap

POLICIES = {
    "rotation": CGGM(smoothing=0.3, lam=0.1),
    "released": CGGM.released(rho=1.0),
    "unimodal losses": UnimodalLosses(),
}


def save(model, optimizer, path):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)


def load(model, optimizer, path):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    states = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(states, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", POLICIES)
def test_one_process(name, base, tmp_path):
    model = small_model()
    optimizer = balanced(model, POLICIES[name], "auto", base)
    train(model, optimizer, steps=3)
    save(model, optimizer, tmp_path)
    twin = small_model(seed=9)
    resumed = balanced(twin, POLICIES[name], "auto", base)
    load(twin, resumed, tmp_path)
    for each, its in ((model, optimizer), (twin, resumed)):
        train(each, its, steps=3, seed=4)
    assert torch.equal(flat(twin), flat(model))
    assert torch.equal(resumed.statistics["coefficients"], optimizer.statistics["coefficients"])


def test_a_flattened_state_dict_is_refused():
    """Torch asks the optimizer's live state which fields to load, where the classifiers' values are not."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model = small_model()
    optimizer = balanced(model, POLICIES["rotation"], "feature", "adamw")
    train(model, optimizer, steps=3)
    model_state, optimizer_state = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    twin = small_model(seed=9)
    resumed = balanced(twin, POLICIES["rotation"], "feature", "adamw")
    with pytest.raises(ValueError, match=r"no 'unimodal_classifier' .* flatten_optimizer_state_dict"):
        set_state_dict(
            twin, resumed, model_state_dict=model_state, optim_state_dict=optimizer_state, options=options
        )


def test_asking_for_a_state_dict_moves_nothing():
    """Distributed checkpointing takes one step with zero gradients to have the state made: not one of ours."""
    model = small_model()
    optimizer = balanced(model, POLICIES["rotation"], "feature", "adamw")
    before = whole(model)
    get_state_dict(model, optimizer)
    torch.testing.assert_close(whole(model), before, rtol=0, atol=0)
    assert optimizer._state.state == {}


def sharded(name, mesh="one dimension"):
    model = sharded_model(mesh)
    return model, balanced(model, POLICIES[name], "auto", "adamw")


def saved_by_two(rank, folder):
    for name in POLICIES:
        model, optimizer = sharded(name)
        steps(model, optimizer, rank, 2, count=2)
        save(model, optimizer, f"{folder}/{name}")
    return None


def resumed_by_any(rank, folder):
    world = dist.get_world_size()
    results = {}
    for name in POLICIES:
        model, optimizer = sharded(name)
        load(model, optimizer, f"{folder}/{name}")
        results[name] = steps(model, optimizer, rank, world, count=2)
    return results


@pytest.mark.slow
def test_saved_by_two_processes_and_loaded_by_one_two_and_four(tmp_path):
    processes.run(saved_by_two, 2, str(tmp_path))
    by_world = {world: processes.run(resumed_by_any, world, str(tmp_path)) for world in (1, 2, 4)}
    for name, policy in POLICIES.items():
        model = small_model()
        optimizer = balanced(model, policy, "auto", "adamw")
        steps(model, optimizer, count=2)
        values, trace = steps(model, optimizer, count=2)
        for results in by_world.values():
            for rank in results:
                torch.testing.assert_close(rank[name][0], values, rtol=1e-3, atol=2e-4)
                torch.testing.assert_close(rank[name][1], trace, rtol=1e-3, atol=2e-4)
        # and an unsharded wrapper of one process reads the same files
        model = small_model(seed=5)
        optimizer = balanced(model, policy, "auto", "adamw")
        load(model, optimizer, tmp_path / name)
        alone, _ = steps(model, optimizer, count=2)
        torch.testing.assert_close(alone, values, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
def test_a_plain_checkpoint_loads_into_a_wrapped_optimizer_and_back(base):
    model = small_model()
    plain = base(model.parameters(), lr=0.01)
    for _ in range(2):
        model(*(torch.randn(4, w) for w in (8, 6))).square().sum().backward()
        plain.step()
    saved = copy.deepcopy(plain.state_dict())

    wrapped_model = small_model(seed=3)
    optimizer = wrap(wrapped_model, base(wrapped_model.parameters(), lr=0.5))
    fresh = [p.detach().clone() for p in wrapped_model.unimodal_classifiers.parameters()]
    optimizer.load_state_dict(saved)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.5]
    current = list(wrapped_model.unimodal_classifiers.parameters())
    assert all(torch.equal(p, q) for p, q in zip(fresh, current, strict=True))
    state = plain_state_dict(optimizer.state_dict())
    torch.testing.assert_close(state, saved, rtol=0, atol=0)

    train(wrapped_model, optimizer, steps=2)
    back = base(small_model().parameters(), lr=0.5)
    back.load_state_dict(plain_state_dict(optimizer.state_dict()))
    assert len(back.param_groups) == 1
    optimizer.detach()
    torch.testing.assert_close(back.state_dict(), optimizer.base.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entry: entry.pop("policy.weights"), r"'policy.weights' was saved as None, but is \[2\] here"),
        (
            lambda entry: entry.update({"policy.scores": torch.zeros(3)}),
            r"'policy.scores' was saved as \[3\], but is \[2\]",
        ),
        (lambda entry: entry.update({"policy.other": torch.zeros(2)}), "'policy.other' was saved as"),
    ],
)
def test_a_policys_state_that_does_not_fit_is_refused_and_changes_nothing(spoil, message):
    model = small_model()
    optimizer = wrap(model, torch.optim.AdamW(model.parameters(), lr=0.01), CGGM())
    train(model, optimizer, steps=2)
    state = copy.deepcopy(optimizer.state_dict())
    spoil(state["state"][state["param_groups"][-1]["params"][0]])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_groups_that_do_not_fit_change_nothing():
    model = small_model()
    optimizer = wrap(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    train(model, optimizer, steps=2)
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    state["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="state_dict"):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
