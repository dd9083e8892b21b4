"""Shows that no operator waits for the GPU and that each can be captured in a CUDA graph; counts its kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from operator_cases import OPERATORS, Call, Case
from torch import Tensor

import cggm_ops
from gpu.budget import Entries
from gpu.operators import Settings, served_by

KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL of the driver's CUgraphNodeType


def capture(entries: Entries, settings: Settings) -> None:
    """Capture every operator of every backend with three and with a thousand tensors."""
    if settings.device != "cuda":
        entries.report["skipped"]["all"] = "CUDA graphs need a GPU"
        return
    for backend in settings.backends:
        for name in served_by(backend, OPERATORS):
            for tensors in (3, 1000):
                key = f"{name} {backend} {tensors} tensors"
                found = entries.add(
                    key, lambda n=name, b=backend, t=tensors: replay_one(n, b, t, settings.device)
                )
                if found is not None:
                    print(f"{key}: {found}", flush=True)


def make(name: str, tensors: int, device: str) -> Call:
    """Make a call, on the same numbers every time."""
    torch.manual_seed(0)
    sizes = tuple((3001, 5, 8192, 20_001)[index % 4] for index in range(tensors))
    return OPERATORS[name].make(Case(sizes, device=device, unowned=True))


def values(call: Call) -> list[Tensor]:
    """Copy everything that the operator may have changed."""
    counters = call.arguments[4] if call.operator == "adamw_" else []
    return [tensor.clone() for row in (*call.changed, counters) for tensor in row]


def replay_one(name: str, backend: str, tensors: int, device: str) -> dict[str, int]:
    """Compare a replayed graph with direct calls, during which waiting is an error; return its numbers of nodes."""
    with cggm_ops.use_backend(backend), torch.no_grad():
        if cggm_ops.backend(device) != backend:
            raise RuntimeError(f"{backend} kernels for {device} are not there")
        called, captured = make(name, tensors, device), make(name, tensors, device)
        for call in (called, captured):  # prepares what is cached
            call.ours()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = called.ours()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            found = captured.ours()
        graph.replay()
        compare_results(expected, found, called, captured)
        expected = called.ours()
        graph.replay()
        compare_results(expected, found, called, captured)
        return count_nodes(graph.raw_cuda_graph())


def compare_results(expected: Any, found: Any, called: Call, captured: Call) -> None:
    """Fail unless all results and changed tensors are the same, bit for bit."""
    flat = [[one] if isinstance(one, Tensor) else list(one or ()) for one in (expected, found)]
    for one, other in zip(flat[0] + values(called), flat[1] + values(captured), strict=True):
        if not torch.equal(one, other):
            raise RuntimeError("the replay of a CUDA graph differs from the calls")


def count_nodes(graph: int) -> dict[str, int]:
    """Ask the driver how many kernels and other nodes (copies, fills) a captured graph has."""
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
