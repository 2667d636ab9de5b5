"""A function -> its results on several real processes (gloo), for tests of distributed code."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

SECONDS = 120
PRELOADED = ["torch", "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure",
             "matplotlib.backends.backend_agg", "scipy.ndimage", "scipy.stats", "nibabel", "tyro"]
"""The process that all ranks are forked from has imported these: an import costs seconds, a fork milliseconds.
Modules of this project are not among them, since that process does not know which checkout is tested."""
multiprocessing.set_forkserver_preload(PRELOADED)


def run_on_ranks(count: int, function: Callable, *arguments: object, start_method: str = "forkserver",
                 seconds: int = SECONDS) -> list:
    """Return `function(*arguments)` of each of `count` new processes; a deadlock or an exception is a failure.

    `function` must stand at the top of its module: the processes import it by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.start_processes(_on_rank, (count, folder, function, arguments), nprocs=count,
                                                  join=False, start_method=start_method)
        done = False
        for _ in range(seconds):
            done = context.join(timeout=1)
            if done:
                break
        for process in context.processes:
            process.kill()
        assert done, f"{count} ranks had not ended after {seconds} seconds: a deadlock"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _on_rank(rank: int, count: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
    # Rendezvous through a file: no port, so that tests that run side by side cannot clash.
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count,
                            timeout=timedelta(seconds=SECONDS))
    result = function(*arguments)
    torch.save(result, Path(folder) / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
