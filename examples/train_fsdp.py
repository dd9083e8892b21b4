"""Balanced training of a two-encoder transformer with FSDP2: `torchrun --nproc-per-node 2 train_fsdp.py`."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper

WIDTH, CLASSES = 32, 4


class Encoder(nn.Module):
    """Projection and two transformer layers: `[B, T, width]` to `[B, WIDTH]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, sequence: Tensor) -> Tensor:
        """The mean over the sequence of the last layer's output."""
        hidden = self.project(sequence)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden).mean(1)


class Multimodal(nn.Module):
    """Audio and text encoders, concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = Encoder(12), Encoder(20)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Logits `[B, CLASSES]`."""
        return self.head(torch.cat([self.audio(audio), self.text(text)], 1))


def batch(step: int, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of noise in which the class is hidden in both modalities, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(CLASSES, (size,), generator=generator)
    hint = F.one_hot(target, CLASSES)[:, None, :]
    audio, text = torch.randn(size, 6, 12, generator=generator), torch.randn(size, 8, 20, generator=generator)
    audio[..., :CLASSES] += 0.7 * hint
    text[..., :CLASSES] += 0.4 * hint
    return audio, text, target


def main(steps: int, bfloat16: bool) -> list[float]:
    """Train, and return the losses: the mean over all ranks."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = Multimodal().to(device)

    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if bfloat16 else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in (*model.audio.layers, *model.text.layers):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)  # first the model is sharded,

    base = torch.optim.AdamW(model.parameters(), lr=1e-3)  # then the optimizer made,
    optimizer = CGGMOptimizerWrapper(  # then it is wrapped
        base, model, encoders={"audio": "audio", "text": "text"}, head="head", policy=CGGM(lam=0.1)
    )
    rank, world = dist.get_rank(), dist.get_world_size()
    history = []
    for step in range(steps):
        audio, text, target = (x[rank::world].to(device) for x in batch(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(audio, text).float(), target)
        optimizer.balance(loss, target).backward()
        optimizer.modulate()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        history.append(mean.item() / world)
    state = get_optimizer_state_dict(model, optimizer)
    if rank == 0:
        coefficients = [round(c, 4) for c in optimizer.statistics["coefficients"].tolist()]
        print(
            f"loss {history[0]:.4f} -> {history[-1]:.4f}, coefficients {coefficients}, {len(state['state'])} tensors"
        )
    dist.destroy_process_group()
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.bfloat16)
