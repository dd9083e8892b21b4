"""No operator waits for the GPU; each is captured in a CUDA graph and replays; how many kernels it launches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cggm_ops
from gpu.budget import Entries
from gpu.sections import Settings, served_by

NAMES = ("scale_", "batched_cosine", "modulate_", "segment_gram", "segment_combine_", "adamw_", "sgd_")
KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL of the driver's CUgraphNodeType


def capture(entries: Entries, settings: Settings) -> None:
    """Every operator of every backend, over a few tensors and over a thousand."""
    if settings.device != "cuda":
        entries.report["skipped"]["all"] = "CUDA graphs need a GPU"
        return
    for backend in settings.backends:
        for name in served_by(backend, NAMES):
            for tensors in (3, 1000):
                key = f"{name} {backend} {tensors} tensors"
                found = entries.add(
                    key, lambda n=name, b=backend, t=tensors: replay_one(n, b, t, settings.device)
                )
                if found is not None:
                    print(f"{key}: {found}", flush=True)


class Inputs:
    """Tensors that stay, and one call of every operator on them.

    Args:
        tensors: of each list.
        device: where.
    """

    def __init__(self, tensors: int, device: str) -> None:
        torch.manual_seed(0)
        sizes = [(5, 8192, 20_001)[index % 3] for index in range(tensors)]
        self.sets = [[torch.randn(size, device=device) for size in sizes] for _ in range(4)]
        torch._foreach_abs_(self.sets[3])
        self.owner = [index % 3 - 1 for index in range(tensors)]
        self.coefficients = torch.tensor([0.9, 1.1], device=device)
        self.head = [torch.randn(3001, device=device) for _ in range(3)]
        self.weights = torch.full((tensors, 2), 0.5, device=device)
        self.steps = [torch.zeros((), device=device) for _ in range(tensors)]
        scales = {"grad_scale": self.coefficients, "update_scale": self.coefficients}
        self.modulation = cggm_ops.Modulation(owner=self.owner, **scales)

    def call(self, name: str) -> Any:
        """Call one operator."""
        a, b, c, d = self.sets
        adam, sgd = cggm_ops.AdamSettings(lr=0.01), cggm_ops.SGDSettings(lr=0.01, momentum=0.9)
        states = {"exp_avgs": c, "exp_avg_sqs": d, "steps": self.steps}
        calls: dict[str, Callable[[], Any]] = {
            "scale_": lambda: cggm_ops.scale_(a, self.owner, self.coefficients),
            "batched_cosine": lambda: cggm_ops.batched_cosine(self.head[0], self.head[1:]),
            "modulate_": lambda: cggm_ops.modulate_(
                a, self.owner, self.coefficients, self.head[0], self.head[1:]
            ),
            "segment_gram": lambda: cggm_ops.segment_gram([a, b]),
            "segment_combine_": lambda: cggm_ops.segment_combine_([a, b], self.weights),
            "adamw_": lambda: cggm_ops.adamw_(a, b, **states, settings=adam, modulation=self.modulation),
            "sgd_": lambda: cggm_ops.sgd_(a, b, momentum_buffers=c, settings=sgd, modulation=self.modulation),
        }
        return calls[name]()

    def values(self) -> list[Tensor]:
        """Everything that an operator may have changed."""
        return [tensor.clone() for row in (*self.sets, self.steps) for tensor in row]


def replay_one(name: str, backend: str, tensors: int, device: str) -> dict[str, int]:
    """Call under a ban on waiting, capture, replay, compare; how many nodes of which kind the graph has."""
    with cggm_ops.use_backend(backend), torch.no_grad():
        if cggm_ops.backend(device) != backend:
            raise RuntimeError(f"{backend} kernels for {device} are not there")
        called, captured = Inputs(tensors, device), Inputs(tensors, device)
        for inputs in (called, captured):  # tables and libraries that are made once
            inputs.call(name)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = called.call(name)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            found = captured.call(name)
        graph.replay()
        compare_results(expected, found, called, captured)
        expected = called.call(name)
        graph.replay()
        compare_results(expected, found, called, captured)
        return count_nodes(graph.raw_cuda_graph())


def compare_results(expected: Any, found: Any, called: Inputs, captured: Inputs) -> None:
    """Fail unless results and everything that was changed are the same, bit for bit."""
    flat = [[one] if isinstance(one, Tensor) else list(one or ()) for one in (expected, found)]
    for one, other in zip(flat[0] + called.values(), flat[1] + captured.values(), strict=True):
        if not torch.equal(one, other):
            raise RuntimeError("the replay of a CUDA graph differs from the calls")


def count_nodes(graph: int) -> dict[str, int]:
    """How many kernels and how many other nodes (copies, fills) a captured graph has, asked of the driver."""
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    _ask(driver.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count)))
    nodes = (ctypes.c_void_p * count.value)()
    _ask(driver.cuGraphGetNodes(ctypes.c_void_p(graph), nodes, ctypes.byref(count)))
    kinds = []
    for node in nodes:
        kind = ctypes.c_int()
        _ask(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        kinds.append(kind.value)
    kernels = kinds.count(KERNEL_NODE)
    return {"kernels": kernels, "other nodes": len(kinds) - kernels}


def _ask(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the CUDA driver answers with error {status}")
