"""Several processes with the model's own unimodal heads, the fusion as classifier, and missing modalities."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import processes
from cggm import CGGM, CGGMOptimizerWrapper, Encoder, UnimodalLosses
from cggm.distributed.collectives import is_sharded
from cggm.policies import DGL
from helpers import SmallModel, batches

POLICIES = {"sum": UnimodalLosses() + CGGM(smoothing=0.3), "dgl": DGL()}
KINDS = ["plain", "ddp", "sharded"]


class OwnHeads(SmallModel):
    """With a unimodal head for each modality, whose outputs it adds to the fusion's."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({m: nn.Linear(4, 3) for m in self.modalities})

    def forward(self, *inputs):
        features = [self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True)]
        alone = sum(self.heads[m](x) for m, x in zip(self.modalities, features, strict=True))
        return alone + self.head(self.fusion(torch.cat(features, 1)).relu())


def classifiers(model, kind):
    return dict(model.heads.items()) if kind == "own heads" else dict.fromkeys(model.modalities, "fusion")


def trained(rank, kind, name, how):
    """All parameters and the scores after four steps on this rank's part of each batch."""
    torch.manual_seed(0)
    model = OwnHeads()
    run = model
    if how == "sharded":
        for part in (*model.encoders.values(), model):
            fully_shard(part, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    elif how == "ddp":
        run = DistributedDataParallel(model)
    chosen = classifiers(model, kind)
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.05),
        run,
        encoders={m: Encoder(f"encoders.{m}", classifier=chosen[m]) for m in model.modalities},
        head="head",
        policy=POLICIES[name],
        **({"apply": "gradient"} if name == "sum" else {}),
    )
    size = 32 if how == "plain" else 32 // dist.get_world_size()
    rows = slice(rank * size, (rank + 1) * size)
    for inputs, target in batches(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
        optimizer.balance(loss, target[rows]).backward()
        optimizer.step()
    values = [p.full_tensor() if is_sharded(p) else p for p in model.parameters()]
    return torch.cat([v.detach().flatten() for v in values]), optimizer.statistics["scores"]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("kind", "how"), [("own heads", "ddp"), ("own heads", "sharded"), ("fusion", "ddp")])
def test_two_processes_train_as_one(kind, name, how):
    results = processes.run(trained, 2, kind, name, how)
    expected = trained(0, kind, name, "plain")
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(result[0], results[0][0])


def partly_present(rank, world):
    """Rank 0 has no audio at all, rank 1 has it in some samples."""
    torch.manual_seed(0)
    model = SmallModel()
    run = model if world == 1 else DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.05),
        run,
        encoders={m: f"encoders.{m}" for m in model.modalities},
        head="head",
        policy=CGGM(smoothing=0.0, score_kind="metric"),
        apply="gradient",
    )
    rows = slice(rank * 32 // world, (rank + 1) * 32 // world)
    ((inputs, target),) = batches(1)
    has = torch.arange(32) > 20
    inputs = [inputs[0] * has[:, None], inputs[1]]
    loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
    optimizer.balance(loss, target[rows], present={"audio": has[rows]}).backward()
    optimizer.step()
    values = torch.cat([p.detach().flatten() for p in model.encoders.parameters()])
    return optimizer.statistics["scores"], optimizer.statistics["coefficients"], values


def test_scores_weigh_by_the_samples_that_have_the_modality():
    results = processes.run(partly_present, 2, 2)
    alone = partly_present(0, 1)
    for result in results:
        torch.testing.assert_close(result, alone, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
