"""DistributedDataParallel: one model in several processes, coefficients alike everywhere, one small collective."""

import copy
import time
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import processes
from cggm import CGGM, CGGMOptimizerWrapper, UnimodalLosses
from cggm.distributed.collectives import average_over_ranks_, mean_over_ranks
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
)
from cggm.policies.plan import scale_targets
from helpers import BoundedSum, SmallModel, batches, flat, small_model

POLICIES = {
    "stable": CGGM(smoothing=0.3, lam=0.1),
    "metric": CGGM(smoothing=0.0, score_kind="metric"),
    "paper": CGGM.paper(rho=1.0),
    "released": CGGM.released(rho=1.0),
    "unimodal losses": UnimodalLosses(),
    "dgl": DGL(),
    "bounded": BoundedSum(),
    "agm": AGM(),
    "mlb": UnimodalLosses() + MLB(),
    "mimo": UnimodalLosses() + MIMO(lam=2.0),
    "smp": SMP(stage_steps=2, epoch_steps=2),
    "ogm": OGMGE(noise=False),
    "ogm-ge": OGMGE(),
    "sum": UnimodalLosses() + CGGM(smoothing=0.3),
}
OF_ONE_RANKS_BATCH = {  # rules and draws over the rank's own samples: alike everywhere, but not the joined batch's
    "norms": NormEqualization(),
    "bounded norms": NormEqualization(bounded=True),
    "pareto": FeaturePareto(),
    "dropout": UnimodalLosses() + ModalityDropout(p=0.3),
    "opm": UnimodalLosses() + OPM(),
    "tcmax": TCMax(),
}
CASES = [(name, apply) for name, p in POLICIES.items() for apply in scale_targets(p, adaptive=False)]
ORDERS = ["wrapped after", "wrapped before", "bare module given"]


def balanced(model, policy, apply, seed=7, base=torch.optim.SGD):
    """The wrapper, with classifiers that start from `seed`."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    torch.manual_seed(seed)
    return CGGMOptimizerWrapper(
        base(inner.parameters(), lr=0.05),
        model,
        encoders={m: f"encoders.{m}" for m in inner.modalities},
        head="head",
        policy=policy,
        apply=apply,
    )


def in_order(order, policy, apply, **options):
    """Model, what runs it, and the optimizer; every rank's classifiers start elsewhere, the first's as alone."""
    model, seed = small_model(), 7 + dist.get_rank()
    if order == "wrapped after":
        optimizer = balanced(model, policy, apply, seed)
        return model, DistributedDataParallel(model, **options), optimizer
    run = DistributedDataParallel(model, **options)
    return model, run, balanced(run if order == "wrapped before" else model, policy, apply, seed)


def steps(model, run, optimizer, parts, count=4):
    """Train on some rows of every batch, one micro-batch for each of `parts`."""
    trace = []
    for inputs, target in batches(count):
        optimizer.zero_grad()
        for number, rows in enumerate(parts):
            with run.no_sync() if number + 1 < len(parts) else nullcontext():
                loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
                (optimizer.balance(loss, target[rows]) / len(parts)).backward()
        optimizer.step()
        trace.append(torch.cat([optimizer.statistics["coefficients"], optimizer.statistics["scores"]]))
    classifiers = torch.cat([p.detach().flatten() for p in model.unimodal_classifiers.parameters()])
    return {"model": flat(model), "classifiers": classifiers, "trace": torch.stack(trace)}


def alone(policy, apply, base=torch.optim.SGD):
    model = small_model()
    return steps(model, model, balanced(model, policy, apply, base=base), [slice(None)])


def share(rank, parts=1):
    """This rank's rows of a batch of 32, in equal parts."""
    size = 32 // (dist.get_world_size() * parts)
    return [slice((rank * parts + i) * size, (rank * parts + i + 1) * size) for i in range(parts)]


def all_cases(rank, cases, orders):
    results = {}
    for order in orders:
        for name, apply in cases:
            results[name, apply, order] = steps(*in_order(order, POLICIES[name], apply), share(rank))
    return results


@pytest.fixture(scope="module")
def by_two():
    return processes.run(all_cases, 2, CASES, ORDERS)


@pytest.fixture(scope="module")
def by_four():
    cases = [("stable", "feature"), ("stable", "gradient"), ("paper", "update")]
    return processes.run(all_cases, 4, cases, ORDERS[:1])


def same_on_all_and_as_alone(results, policy, apply, **tolerance):
    reference = alone(policy, apply)
    for result in results:
        for key, value in result.items():
            assert torch.equal(value, results[0][key]), f"{key} differs between the ranks"
            torch.testing.assert_close(value, reference[key], **tolerance)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "apply"), CASES)
def test_two_processes_train_as_one_on_the_joined_batch(by_two, name, apply, order):
    results = [rank[name, apply, order] for rank in by_two]
    same_on_all_and_as_alone(results, POLICIES[name], apply, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "apply"), [("stable", "feature"), ("stable", "gradient"), ("paper", "update")]
)
def test_four_processes_train_as_one_on_the_joined_batch(by_four, name, apply):
    results = [rank[name, apply, ORDERS[0]] for rank in by_four]
    same_on_all_and_as_alone(results, POLICIES[name], apply, rtol=1e-4, atol=2e-5)


def by_own_samples(rank):
    return {
        name: steps(*in_order("wrapped after", policy, "auto"), share(rank))
        for name, policy in OF_ONE_RANKS_BATCH.items()
    }


def test_rules_over_a_ranks_own_samples_keep_the_models_alike():
    results = processes.run(by_own_samples, 2)
    for name in OF_ONE_RANKS_BATCH:
        assert all(torch.equal(results[0][name][key], value) for key, value in results[1][name].items())


def relearned(rank):
    model, _, optimizer = in_order("wrapped after", CGGM(), "auto")
    train, validation = ((inputs, target) for inputs, target in batches(2, size=24, seed=rank))
    initial = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    return optimizer.relearn([train], [validation], initial).shares, flat(model)


def test_processes_relearn_alike_from_samples_of_their_own():
    (shares, one), (others_shares, other) = processes.run(relearned, 2)
    assert shares.max() > 0
    assert torch.equal(shares, others_shares)
    assert torch.equal(one, other)


PARAMETER_LEVEL = {"mmpareto": MMPareto(), "both": MMPareto() + CGGM(smoothing=0.3)}


def combined_at_parameters(rank):
    results = {}
    for name, policy in PARAMETER_LEVEL.items():
        made = in_order("wrapped before", policy, "auto", find_unused_parameters=True)
        results[name] = steps(*made, share(rank))
        made = in_order("wrapped before", policy, "auto", find_unused_parameters=True)
        results[name, "accumulated"] = steps(*made, share(rank, parts=2))
    model = small_model()
    reducers = [
        model,
        DistributedDataParallel(model),
        DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True),
    ]
    for run in reducers:
        with pytest.raises(ValueError, match=r"find_unused_parameters=True\), or use FeaturePareto"):
            balanced(run, MMPareto(), "auto")
        assert not hasattr(model, "unimodal_classifiers")
    return results


@pytest.fixture(scope="module")
def at_parameters():
    return processes.run(combined_at_parameters, 2)


@pytest.mark.parametrize("name", PARAMETER_LEVEL)
def test_gradients_combined_at_the_parameters_are_those_of_the_joined_batch(at_parameters, name):
    same_on_all_and_as_alone(
        [rank[name] for rank in at_parameters], PARAMETER_LEVEL[name], "auto", rtol=1e-4, atol=2e-5
    )
    one, other = (rank[name, "accumulated"] for rank in at_parameters)
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def accumulated(rank, order, apply):
    return steps(*in_order(order, POLICIES["stable"], apply), share(rank, parts=2))


@pytest.mark.parametrize("order", ORDERS[:2])
def test_accumulation_without_synchronizing_equals_one_large_batch(order):
    results = processes.run(accumulated, 2, order, "gradient")
    same_on_all_and_as_alone(results, POLICIES["stable"], "gradient", rtol=1e-4, atol=2e-5)


def uneven(rank, first):
    policy = CGGM(smoothing=0.0, score_kind="metric")
    rows = [slice(0, first), slice(first, 32)][rank]
    return steps(*in_order("wrapped after", policy, "feature"), [rows], count=1)["trace"]


@pytest.mark.parametrize("first", [20, 32])  # samples of the first rank; the second has the rest, or none
def test_uneven_batches_weigh_by_their_samples(first):
    model = small_model()
    reference = steps(
        model,
        model,
        balanced(model, CGGM(smoothing=0.0, score_kind="metric"), "feature"),
        [slice(None)],
        count=1,
    )
    for trace in processes.run(uneven, 2, first):
        torch.testing.assert_close(trace, reference["trace"])


def options_of_ddp(rank):
    results = {}
    for order in ORDERS[:2]:
        for apply in ("feature", "gradient"):
            for options in (
                {},
                {"gradient_as_bucket_view": True},
                {"static_graph": True},
                {"bucket_cap_mb": 1e-4},
            ):
                outcome = steps(*in_order(order, POLICIES["stable"], apply, **options), share(rank))
                results[order, apply, str(options)] = outcome
    model, run, optimizer = in_order(
        "wrapped after", POLICIES["stable"], "gradient", gradient_as_bucket_view=True
    )
    steps(model, run, optimizer, share(rank), count=2)
    views = [p.grad.data_ptr() for p in model.parameters()]
    steps(model, run, optimizer, share(rank), count=1)
    results["views"] = torch.tensor(views)
    results["views later"] = torch.tensor([p.grad.data_ptr() for p in model.parameters()])
    return results


def test_bucket_views_static_graph_and_small_buckets_change_nothing():
    for results in processes.run(options_of_ddp, 2):
        for order in ORDERS[:2]:
            for apply in ("feature", "gradient"):
                plain = results[order, apply, "{}"]
                for key, outcome in results.items():
                    if key[:2] == (order, apply):
                        torch.testing.assert_close(outcome, plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(results["views"], results["views later"])  # gradients are still DDP's own buckets


def count_collectives(rank, order, apply, parts=1):
    model, run, optimizer = in_order(order, POLICIES["stable"], apply)
    sizes = []
    original = dist.all_reduce

    def counted(tensor, *arguments, **keywords):
        sizes.append(tensor.numel())
        return original(tensor, *arguments, **keywords)

    with (
        mock.patch.object(dist, "all_reduce", counted),
        mock.patch.object(dist, "broadcast", side_effect=AssertionError)
        if order == ORDERS[0]
        else nullcontext(),
    ):
        steps(model, run, optimizer, share(rank, parts), count=3)
    classifiers = sum(p.numel() for p in model.unimodal_classifiers.parameters())
    return sizes, classifiers


@pytest.mark.parametrize("apply", ["feature", "gradient", "update"])
def test_a_step_makes_one_small_collective_beside_those_of_ddp(apply):
    for sizes, _ in processes.run(count_collectives, 2, ORDERS[0], apply):
        assert sizes == [4, 4, 4]  # two scores, and for each the number of samples


def test_classifiers_that_ddp_does_not_know_take_one_more():
    for sizes, classifiers in processes.run(count_collectives, 2, ORDERS[1], "feature"):
        assert sizes == [4, classifiers] * 3
    for sizes, classifiers in processes.run(count_collectives, 2, ORDERS[1], "feature", 2):
        assert sizes == [4, 4, classifiers] * 3  # none of their own under no_sync()


class WithBuffers(SmallModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, *inputs):
        features = [self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True)]
        return self.head(self.norm(self.fusion(torch.cat(features, 1))).relu())


def buffers(rank, wrapped):
    torch.manual_seed(0)
    model = WithBuffers()
    optimizer = balanced(model, CGGM(rho=1.0, smoothing=0.999999), "feature") if wrapped else None
    run = DistributedDataParallel(model)
    plain = torch.optim.SGD(model.parameters(), lr=0.05) if optimizer is None else optimizer
    for inputs, target in batches(3):
        rows = share(rank)[0]
        plain.zero_grad()
        loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
        (loss if optimizer is None else optimizer.balance(loss, target[rows])).backward()
        plain.step()
    return {name: value for name, value in model.state_dict().items() if "norm" in name}


def test_buffers_are_those_of_a_plain_run():
    for with_balance, without in zip(
        processes.run(buffers, 2, True), processes.run(buffers, 2, False), strict=True
    ):
        torch.testing.assert_close(with_balance, without, rtol=0, atol=1e-6)


def overflow_on_one_rank(rank, order):
    """One classifier of rank 1 has an infinite gradient in the second of four steps."""
    model, run, optimizer = in_order(order, POLICIES["stable"], "feature")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = next(model.unimodal_classifiers.parameters())
    trace = []
    for number, (inputs, target) in enumerate(batches(4)):
        factor = torch.inf if (number, rank) == (1, 1) else 1.0
        handle = weight.register_hook(lambda gradient, factor=factor: gradient * factor)
        (rows,) = share(rank)
        loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
        optimizer.zero_grad()
        scaler.scale(optimizer.balance(loss, target[rows])).backward()
        scaler.step(optimizer)
        scaler.update()
        handle.remove()
        classifiers = [p.detach().flatten() for p in model.unimodal_classifiers.parameters()]
        trace.append(torch.cat([flat(model), *classifiers]))
    return torch.stack(trace), scaler.get_scale()


@pytest.mark.parametrize("order", ORDERS)
def test_an_overflow_on_one_rank_skips_the_step_on_all(order):
    (one, scale), (other, other_scale) = processes.run(overflow_on_one_rank, 2, order, limit=60, patience=10)
    assert torch.equal(one, other)
    assert scale == other_scale == 2.0
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one[1], one[2])


def one_rank_fails(rank):
    model, run, optimizer = in_order("wrapped after", POLICIES["stable"], "feature")
    steps(model, run, optimizer, share(rank), count=1)
    if rank == 1:
        raise RuntimeError("this rank gives up")
    started = time.monotonic()
    try:
        steps(model, run, optimizer, share(rank), count=1)
    except RuntimeError:
        return time.monotonic() - started
    return None


def one_rank_lags(rank):
    if rank == 1:
        time.sleep(8)
        return None
    started = time.monotonic()
    try:
        mean_over_ranks(torch.zeros(2), 1)
    except RuntimeError:
        return time.monotonic() - started
    return None


@pytest.mark.parametrize("function", [one_rank_fails, one_rank_lags])
def test_a_missing_rank_keeps_nobody_waiting_beyond_the_timeout(function):
    results, _ = processes.start(function, 2, patience=4, limit=40)
    assert results[0] is not None
    assert results[0] < 10


def unused(rank):
    model, run, optimizer = in_order(
        "wrapped before", POLICIES["stable"], "feature", find_unused_parameters=True
    )
    outcome = steps(model, run, optimizer, share(rank))
    with pytest.raises(RuntimeError, match="make it before the optimizer wrapper, or pass False"):
        steps(
            *in_order("wrapped after", POLICIES["stable"], "feature", find_unused_parameters=True),
            share(rank),
        )
    group = dist.new_group([0])
    if rank == 0:
        with pytest.raises(ValueError, match="process_group of its own"):
            balanced(DistributedDataParallel(small_model(), process_group=group), CGGM(), "feature")
    return outcome


def test_searching_unused_parameters_needs_ddp_first_and_a_group_of_all_ranks():
    same_on_all_and_as_alone(processes.run(unused, 2), POLICIES["stable"], "feature", rtol=1e-4, atol=2e-5)


def resumed(rank, order):
    model, run, optimizer = in_order(order, POLICIES["stable"], "feature")
    steps(model, run, optimizer, share(rank))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ahead = steps(model, run, optimizer, share(rank))
    model, run, optimizer = in_order(order, POLICIES["stable"], "feature")
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    return ahead, steps(model, run, optimizer, share(rank))


@pytest.mark.parametrize("order", ORDERS[:2])
def test_a_resumed_run_goes_on_bit_for_bit(order):
    for ahead, again in processes.run(resumed, 2, order):
        assert all(torch.equal(ahead[key], again[key]) for key in ahead)


def averages(rank):
    tensors = [torch.full((2, 2), float(rank)), torch.tensor(3.0 * rank), torch.ones(3, dtype=torch.bfloat16)]
    average_over_ranks_(tensors)
    return tensors


def test_averages_over_ranks():
    for tensors in processes.run(averages, 2):
        assert torch.equal(tensors[0], torch.full((2, 2), 0.5))
        assert tensors[1].item() == 1.5
        assert tensors[2].dtype == torch.bfloat16
        assert torch.equal(tensors[2].float(), torch.ones(3))
