"""`flatten=True` in several processes: beside DistributedDataParallel, by one collective of one's own, or refused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import processes
from cggm import CGGM, CGGMOptimizerWrapper, UnimodalLosses
from helpers import SmallModel, backward, batches, flat, in_buffers, small_model, train, wrap

ENCODERS = {m: f"encoders.{m}" for m in ("audio", "image")}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def in_two_processes(rank):
    results = {}
    for name, flatten in (("plain", False), ("flat", True)):
        model = small_model()
        run = DistributedDataParallel(model)
        torch.manual_seed(7)
        optimizer = wrap(run.module, sgd(model), CGGM(smoothing=0.3), flatten=flatten, apply="gradient")
        buffers = optimizer.gradient_buffers
        for inputs, target in batches(4):
            optimizer.zero_grad()
            rows = slice(16 * rank, 16 * rank + 16)
            loss = F.cross_entropy(run(*[x[rows] for x in inputs]), target[rows])
            optimizer.balance(loss, target[rows]).backward()
            assert not flatten or in_buffers(buffers, model.parameters())
            optimizer.step()
        results[name] = flat(model)
    for refused in (
        fully_shard(small_model()),
        DistributedDataParallel(small_model(), gradient_as_bucket_view=True),
    ):
        with pytest.raises(ValueError, match="would both lay the gradients out"):
            CGGMOptimizerWrapper(sgd(refused), refused, encoders=ENCODERS, head="head", flatten=True)
        assert not any("unimodal_classifiers" in name for name, _ in refused.named_modules())
    model = small_model()
    optimizer = wrap(model, flatten=True)
    run = DistributedDataParallel(model, gradient_as_bucket_view=True)  # after the wrapper was made
    inputs, target = next(batches(1))
    with pytest.raises(ValueError, match="would both lay the gradients out"):
        optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
    return results


def with_one_collective(rank):
    """Data parallelism by hand, as the buffers allow it."""
    model = small_model()
    torch.manual_seed(7)
    optimizer = wrap(model, sgd(model), UnimodalLosses(), flatten=True)
    for inputs, target in batches(4):
        optimizer.zero_grad()
        rows = slice(16 * rank, 16 * rank + 16)
        backward(model, optimizer, [x[rows] for x in inputs], target[rows])
        for buffer in optimizer.gradient_buffers:
            dist.all_reduce(buffer.div_(dist.get_world_size()))
        optimizer.step()
    return flat(model)


def test_two_processes_train_as_without_buffers_and_others_layouts_are_refused():
    results = processes.run(in_two_processes, 2)
    for result in results:
        torch.testing.assert_close(result["flat"], result["plain"])
        assert torch.equal(result["flat"], results[0]["flat"])


def test_one_collective_over_the_buffer_trains_as_one_process_does():
    torch.manual_seed(7)
    model = small_model()
    torch.manual_seed(7)
    optimizer = wrap(model, sgd(model), UnimodalLosses())
    train(model, optimizer, steps=4)
    first, second = processes.run(with_one_collective, 2)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, flat(model), rtol=1e-4, atol=2e-5)


class Experts(SmallModel):
    """Of two layers after the head, every process uses its own."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.used = 0

    def forward(self, *inputs):
        return self.experts[self.used](super().forward(*inputs))


def with_own_experts(rank):
    torch.manual_seed(0)
    model = Experts()
    model.used = rank
    optimizer = wrap(model, sgd(model), UnimodalLosses(), flatten=True)
    backward(model, optimizer, *next(batches(1, seed=rank)))
    own = model.experts[rank].weight.grad.clone()
    for buffer in optimizer.gradient_buffers:
        dist.all_reduce(buffer)
    return own, model.experts[rank].weight.grad


def test_processes_have_the_same_buffers_whichever_parameters_they_use():
    for own, reduced in processes.run(with_own_experts, 2):
        assert torch.equal(reduced, own)  # the other process added zeros
