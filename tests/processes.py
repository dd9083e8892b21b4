"""Runs a function in several processes of one gloo group; nothing here can hang for longer than its time limit."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Imported once in the server from which the processes fork: starting one then takes no second.
PRELOAD = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "cggm", "helpers", "processes"]


def _run(function: Callable, rank: int, world: int, folder: str, patience: float, arguments: tuple) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    place = Path(folder)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=patience),
        )
        torch.save(function(rank, *arguments), place / f"{rank}.pt")
        dist.barrier()
    except BaseException:
        (place / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        os._exit(0)  # a group with a missing member does not take itself down


def start(
    function: Callable, world: int, *arguments: Any, limit: float = 90, patience: float = 30
) -> tuple[dict[int, Any], dict[int, str]]:
    """Results and error texts by rank, and whoever is not back after `limit` seconds is ended.

    Args:
        function: called as `function(rank, *arguments)`, at the top of a module.
        world: number of processes.
        arguments: can be pickled.
        limit: seconds for all of it.
        patience: the process group's timeout in seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_run, args=(function, rank, world, folder, patience, arguments), daemon=True
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + limit
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for rank in late:
            processes[rank].kill()
            processes[rank].join()
        results = {int(p.stem): torch.load(p, weights_only=False) for p in Path(folder).glob("*.pt")}
        errors = {int(p.stem): p.read_text() for p in Path(folder).glob("*.error")}
        return results, errors | dict.fromkeys(late, f"not back after {limit} s")


def run(function: Callable, world: int, *arguments: Any, **limits: float) -> list[Any]:
    """What `function(rank, *arguments)` returned on each rank; its errors are raised here."""
    results, errors = start(function, world, *arguments, **limits)
    assert not errors, "\n".join(f"rank {rank}: {text}" for rank, text in sorted(errors.items()))
    return [results[rank] for rank in range(world)]
