"""FSDP2 (`fully_shard`): sharded training follows unsharded training, for every policy and kind of shard."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F

import processes
from cggm import CGGM, CGGMOptimizerWrapper, UnimodalLosses
from cggm.distributed.collectives import is_sharded
from cggm.policies import AGM, DGL, OGMGE
from cggm.policies.plan import scale_targets
from helpers import BoundedSum, batches, small_model

POLICIES = {
    "bounded": BoundedSum(),
    "stable": CGGM(smoothing=0.3),
    "rotation": CGGM(smoothing=0.3, lam=0.1),
    "paper": CGGM.paper(rho=1.0),
    "released": CGGM.released(rho=1.0),
    "unimodal losses": UnimodalLosses(),
    "dgl": DGL(),
    "ogm": OGMGE(noise=False),
    "sum": UnimodalLosses() + CGGM(smoothing=0.3),
}
CASES = [(name, apply) for name, p in POLICIES.items() for apply in scale_targets(p, adaptive=False)]
BASES = {"sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), "adamw": (torch.optim.AdamW, {"lr": 0.01})}
MESHES = ["one dimension", "two dimensions"]


def balanced(model, policy, apply, base):
    make, options = BASES[base]
    torch.manual_seed(7)
    return CGGMOptimizerWrapper(
        make(model.parameters(), **options),
        model,
        encoders={m: f"encoders.{m}" for m in ("audio", "image")},
        head="head",
        policy=policy,
        apply=apply,
    )


def sharded_model(mesh, **options):
    """Encoders in units of their own, the rest in the root's: biases of 3 and 4 elements leave shards empty."""
    model = small_model()
    if mesh == "two dimensions":
        options["mesh"] = init_device_mesh(
            "cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "fsdp")
        )
    else:
        options["mesh"] = init_device_mesh("cpu", (dist.get_world_size(),))
    for encoder in model.encoders.values():
        fully_shard(encoder, **options)
    return fully_shard(model, **options)


def whole(model):
    """All parameters, the classifiers' included, gathered."""
    return {
        name: (p.full_tensor() if is_sharded(p) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def steps(model, optimizer, rank=0, world=1, count=4):  # the paper's terms explode in the fifth
    trace = []
    rows = slice(rank * 32 // world, (rank + 1) * 32 // world)
    for inputs, target in batches(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*[x[rows] for x in inputs]).float(), target[rows])
        optimizer.balance(loss, target[rows]).backward()
        optimizer.modulate()
        figures = [optimizer.statistics[n] for n in ("coefficients", "scores", "cosines", "grad_norms")]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        trace.append(torch.cat([*figures, (norm.full_tensor() if is_sharded(norm) else norm)[None]]))
    return whole(model), torch.stack(trace)


def alone(policy, apply, base):
    model = small_model()
    return steps(model, balanced(model, policy, apply, base))


def all_cases(rank, mesh, bases, cases):
    world = dist.get_world_size()
    results = {}
    for base in bases:
        for name, apply in cases:
            model = sharded_model(mesh)
            optimizer = balanced(model, POLICIES[name], apply, base)
            results[base, name, apply] = steps(model, optimizer, rank, world)
            sizes = [p.to_local().numel() for p in model.parameters()]
            results["empty shards"] = torch.tensor(sum(size == 0 for size in sizes))
    return results


@pytest.fixture(scope="module")
def by_two():
    return processes.run(all_cases, 2, "one dimension", list(BASES), CASES)


@pytest.fixture(scope="module")
def by_four():
    cases = [("rotation", "feature"), ("rotation", "gradient"), ("rotation", "update"), ("paper", "gradient")]
    return {mesh: processes.run(all_cases, 4, mesh, ["sgd"], cases) for mesh in MESHES}


def compare(results, key):
    base, name, apply = key
    values, trace = alone(POLICIES[name], apply, base)
    for rank in results:
        torch.testing.assert_close(rank[key][1], trace, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(rank[key][0], values, rtol=1e-3, atol=1e-4)
        assert torch.equal(rank[key][1], results[0][key][1])  # coefficients to the last bit on every rank


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "apply"), CASES)
def test_two_shards_train_as_the_whole(by_two, name, apply, base):
    compare(by_two, (base, name, apply))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("name", "apply"),
    [("rotation", "feature"), ("rotation", "gradient"), ("rotation", "update"), ("paper", "gradient")],
)
def test_four_processes_shard_over_meshes_of_one_and_two_dimensions(by_four, mesh, name, apply):
    compare(by_four[mesh], ("sgd", name, apply))


def test_shards_may_be_empty(by_four):
    assert by_four["one dimension"][3]["empty shards"] > 0


def mixed(rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    results = {}
    for name, apply in CASES:
        model = sharded_model("one dimension", mp_policy=policy)
        outcome = steps(model, balanced(model, POLICIES[name], apply, "sgd"), rank, 2, count=3)
        assert all(p.dtype == torch.float32 for p in model.unimodal_classifiers.parameters())
        results[name, apply] = outcome
    return results


def test_mixed_precision_follows_to_bfloat16s_own_rounding():
    results = processes.run(mixed, 2)
    for name, apply in CASES:
        values, trace = results[0][name, apply]
        assert torch.equal(results[1][name, apply][1], trace)
        for p, q in zip(values.values(), results[1][name, apply][0].values(), strict=True):
            assert torch.equal(p, q)
            assert torch.isfinite(p).all()
    model = small_model()
    reference, _ = steps(model, balanced(model, POLICIES["rotation"], "gradient", "sgd"), count=3)
    torch.testing.assert_close(results[0]["rotation", "gradient"][0], reference, rtol=0.05, atol=0.02)


def accumulated(rank):
    model = sharded_model("one dimension")
    optimizer = balanced(model, POLICIES["rotation"], "gradient", "sgd")
    for inputs, target in batches(3):
        optimizer.zero_grad()
        for part in range(2):
            model.set_requires_gradient_sync(part == 1)
            rows = slice(rank * 16 + part * 8, rank * 16 + part * 8 + 8)
            loss = F.cross_entropy(model(*[x[rows] for x in inputs]), target[rows])
            (optimizer.balance(loss, target[rows]) / 2).backward()
        optimizer.modulate()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return whole(model)


def test_accumulation_without_synchronizing():
    model = small_model()
    reference, _ = steps(model, balanced(model, POLICIES["rotation"], "gradient", "sgd"), count=3)
    for values in processes.run(accumulated, 2):
        torch.testing.assert_close(values, reference, rtol=1e-3, atol=1e-5)


def refused(rank):
    model = small_model()  # the wrapper first
    optimizer = balanced(model, POLICIES["stable"], "feature", "sgd")
    fully_shard(model)
    with pytest.raises(RuntimeError, match=r"call fully_shard\(model\) first, then make the optimizer"):
        steps(model, optimizer, rank, 2, count=1)
    model = small_model()  # a part only
    fully_shard(model.encoders["audio"])
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"call fully_shard\(model\) last, before making the optimizer"):
        balanced(model, POLICIES["stable"], "feature", "sgd")
    assert not hasattr(model, "unimodal_classifiers")
    assert len(base.param_groups) == 1
    for name in ("paper", "released"):  # the head in a unit of its own
        model = small_model()
        fully_shard(model.head)
        fully_shard(model)
        optimizer = balanced(model, POLICIES[name], "gradient", "sgd")
        with pytest.raises(RuntimeError, match=r"needs the head's whole weight"):
            steps(model, optimizer, rank, 2, count=2)
    with pytest.raises(ValueError, match=r"AGM\(\) runs the fusion again"):
        balanced(sharded_model("one dimension"), AGM(), "auto", "sgd")
    with pytest.raises(ValueError, match="noise=False"):
        balanced(sharded_model("one dimension"), OGMGE(), "auto", "sgd")


def test_what_cannot_work_is_refused_with_the_mend():
    processes.run(refused, 2)


def test_deepspeed_zero_is_told_by_its_parameters():
    """ZeRO's parameters carry an id, and their gradients never arrive in `.grad`."""
    model = small_model()
    optimizer = balanced(model, POLICIES["stable"], "gradient", "sgd")
    for number, parameter in enumerate(model.encoders.parameters()):
        parameter.ds_id = number
    ((inputs, target),) = batches(1)
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    for parameter in model.parameters():
        parameter.grad = None
    with pytest.raises(RuntimeError, match="DeepSpeed ZeRO keeps gradients in partitions of its own"):
        optimizer.step()
