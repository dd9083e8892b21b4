"""The methods inside the wrapper: accumulation, loss scaling, checkpoints, copies, compilation, mixed precision."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cggm import CGGM, ModalityDropout, NormEqualization, Policy, UnimodalLosses
from cggm.policies import AGM, DGL, MIMO, MLB, OGMGE, OPM, SMP, FeaturePareto, Joint, MMPareto, TCMax
from helpers import BASES, TORCH, NoHostSync, SmallModel, backward, batches, flat, small_model, train, wrap

THREE = ("audio", "image", "text")
POLICIES = {
    "norm equalization": NormEqualization(),
    "feature pareto": FeaturePareto(),
    "dgl": DGL(),
    "mmpareto": MMPareto(),
    "ogm-ge": OGMGE(0.4),
    "ogm": OGMGE(0.4, noise=False),
    "agm": AGM(1.0),
    "mlb": UnimodalLosses() + MLB(),
    "mimo": UnimodalLosses() + MIMO(lam=2.0),
    "opm": OPM(),
    "tcmax": TCMax(),
    "cggm and opm": UnimodalLosses() + CGGM(smoothing=0.5) + OPM(0.4, 1.0),
    "smp": SMP(stage_steps=3, epoch_steps=2),
    "dropout": ModalityDropout(0.3),
    "unimodal and dropout": UnimodalLosses() + ModalityDropout(0.3),
    "unimodal and cggm": UnimodalLosses() + CGGM(smoothing=0.5),
    "mmpareto, cggm and dropout": MMPareto() + CGGM(smoothing=0.5) + ModalityDropout(0.3),
}
EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@EVERY
@pytest.mark.parametrize("base", BASES)
def test_every_optimizer_learns_with_every_method(base, policy):
    model = small_model(THREE)
    optimizer = wrap(model, BASES[base](model.parameters()), policy)
    losses = []
    for inputs, target in batches(150, THREE):
        optimizer.zero_grad()
        losses.append(backward(model, optimizer, inputs, target))
        optimizer.step()
    assert torch.stack(losses[-10:]).mean() < 0.99 * torch.stack(losses[:10]).mean()
    statistics = optimizer.statistics
    assert {"scores", "coefficients", "cosines", "grad_norms"} <= set(statistics)
    assert all(
        statistics[name].shape == (() if name == "loss" else (3,)) and torch.isfinite(statistics[name]).all()
        for name in statistics
    )


@EVERY
def test_a_step_waits_for_no_device(policy):
    model = small_model(THREE)
    optimizer = wrap(model, policy=policy)
    train(model, optimizer, steps=2)
    with NoHostSync():
        train(model, optimizer, steps=2)
        dict(optimizer.statistics)


@EVERY
def test_loss_scaling_and_a_skipped_step(policy):
    results = []
    for scaled in (False, True):
        model = small_model()
        optimizer = wrap(model, BASES["sgd"](model.parameters()), policy)
        scaler = torch.amp.GradScaler(
            "cpu", enabled=scaled, init_scale=1024.0, growth_interval=1000, backoff_factor=0.999999
        )
        torch.manual_seed(1)
        for step, (inputs, target) in enumerate(batches(6)):
            if step == 3 and not scaled:
                state = torch.get_rng_state()
                model(*inputs)  # draws what the skipped step draws
                optimizer._model.forget()
                plan = optimizer._state.plan
                if plan.adds_noise:
                    [torch.randn_like(p) for p in model.encoders.parameters()]
                assert plan.dropout or plan.adds_noise or torch.equal(state, torch.get_rng_state())
                continue
            optimizer.zero_grad()
            loss = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
            scaler.scale(loss).backward()
            if step == 3:
                model.fusion.weight.grad[0, 0] = torch.inf
            before = flat(model)
            scaler.unscale_(optimizer)
            optimizer.modulate()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(flat(model), before) == (step == 3)
        results.append((flat(model), optimizer.statistics["coefficients"]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", [MMPareto(), NormEqualization(), FeaturePareto()], ids=repr)
def test_overflow_in_an_encoder_reaches_the_scaler(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    ((inputs, target),) = batches(1)
    before = flat(model)
    loss = optimizer.balance(1e30 * F.cross_entropy(model(*inputs), target), target)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    "policy", [DGL(), OGMGE(0.4, noise=False), UnimodalLosses() + OGMGE(0.4, noise=False)], ids=repr
)
def test_micro_batches_equal_one_large_batch(policy):
    """Of methods whose arithmetic is linear in the gradients once the coefficients are known."""
    results = []
    for parts in (1, 4):
        model = small_model()
        optimizer = wrap(model, policy=policy, apply="auto" if policy == DGL() else "gradient")
        for inputs, target in batches(5):
            optimizer.zero_grad()
            for part in range(parts):
                rows = slice(part * 32 // parts, (part + 1) * 32 // parts)
                loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows])
                (optimizer.balance(loss, target[rows]) / parts).backward()
            optimizer.step()
        results.append((flat(model), optimizer.statistics["coefficients"]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", [MMPareto(), NormEqualization(), FeaturePareto(), AGM(0.0)], ids=repr)
def test_each_micro_batch_is_a_batch_of_its_own(policy):
    gradients = []
    for together in (True, False):
        model = small_model()
        optimizer = wrap(model, policy=policy)
        total = 0
        for inputs, target in batches(3):
            if not together:
                optimizer.zero_grad()
            (optimizer.balance(F.cross_entropy(model(*inputs), target), target) / 3).backward()
            if not together:
                total = total + torch.cat([p.grad.flatten() for p in model.encoders.parameters()])
        together and gradients.append(torch.cat([p.grad.flatten() for p in model.encoders.parameters()]))
        together or gradients.append(total)
    torch.testing.assert_close(*gradients)


def test_agm_without_modulation_is_joint_training():
    results = []
    for policy in (Joint(), AGM(0.0)):
        model = small_model(THREE)
        train(model, wrap(model, policy=policy), steps=6)
        results.append(flat(model))
    torch.testing.assert_close(*results)


RESUME = """
import sys, torch
sys.path[:0] = [{tests!r}, {tests!r} + '/policies']
from helpers import *
from test_methods_training import POLICIES
torch.set_num_threads(1)
saved = torch.load({path!r})
model = small_model(seed=99)
optimizer = wrap(model, BASES["adamw"](model.parameters()), POLICIES[saved["policy"]])
model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
torch.manual_seed(5)
train(model, optimizer, steps=4, seed=7)
torch.save({{"model": flat(model), "coefficients": optimizer.statistics["coefficients"]}}, {path!r})
"""


@pytest.mark.parametrize(
    "name", ["agm", "ogm-ge", "mimo", "smp", "opm", "cggm and opm", "mmpareto, cggm and dropout"]
)
def test_a_fresh_process_goes_on_bit_for_bit(name, tmp_path):
    model = small_model()
    optimizer = wrap(model, BASES["adamw"](model.parameters()), POLICIES[name])
    train(model, optimizer, steps=4)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "policy": name}, path)
    torch.manual_seed(5)
    train(model, optimizer, steps=4, seed=7)
    code = RESUME.format(tests=str(Path(__file__).parents[1]), path=str(path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    resumed = torch.load(path)
    assert torch.equal(resumed["model"], flat(model))
    assert torch.equal(resumed["coefficients"], optimizer.statistics["coefficients"])


@EVERY
def test_copies_go_their_own_way(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    train(model, optimizer, steps=2)
    twin_model, twin = copy.deepcopy((model, optimizer))
    start = flat(model)
    torch.manual_seed(1)
    train(twin_model, twin, steps=3, seed=5)
    assert torch.equal(flat(model), start)
    torch.manual_seed(1)
    train(model, optimizer, steps=3, seed=5)
    assert torch.equal(flat(model), flat(twin_model))
    optimizer.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@EVERY
def test_inactive_is_plain_training_and_state_stays(policy):
    results = []
    for inactive in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=policy if inactive else Joint())
        if inactive:
            optimizer.active = False
            assert optimizer.active is False
        train(model, optimizer, steps=4)
        results.append(flat(model))
    torch.testing.assert_close(*results)
    optimizer.active = True
    train(model, optimizer, steps=2)
    assert torch.isfinite(flat(model)).all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_and_low_precision(policy, dtype):
    model = small_model().to(dtype)
    optimizer = wrap(model, policy=policy)
    for inputs, target in batches(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            loss = F.cross_entropy(model(*[x.to(dtype) for x in inputs]), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()
    assert torch.isfinite(flat(model)).all()
    assert optimizer.statistics["coefficients"].dtype == torch.float32


class Checkpointed(SmallModel):
    def forward(self, *inputs):
        features = [
            checkpoint(self.encoders[m], x, use_reentrant=False).relu()
            for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


@EVERY
def test_activation_checkpointing(policy):
    results = []
    for kind in (SmallModel, Checkpointed):
        torch.manual_seed(0)
        model = kind()
        optimizer = wrap(model, policy=policy)
        torch.manual_seed(1)
        train(model, optimizer, steps=4)
        results.append(flat(model))
    torch.testing.assert_close(*results)


@EVERY
def test_under_torch_compile(policy):
    if TORCH < (2, 7) and getattr(Policy.of(policy).combiner, "combine_at", "") == "parameters":
        pytest.skip("the compiler of torch 2.6 fails on the hook's autograd function")
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = small_model()
        optimizer = wrap(model, policy=policy)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        torch.manual_seed(1)
        for inputs, target in batches(3):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)
