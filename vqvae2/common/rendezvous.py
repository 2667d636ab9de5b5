"""The environment that torchrun gives a process -> its rank, and a store that only the processes of this start use."""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist


def launched_rank() -> int:
    """Return the rank that torchrun gave this process; known before the process group starts."""
    return int(os.environ.get("RANK", 0))


def launched_world_size() -> int:
    """Return the number of processes that torchrun starts, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def store_of_this_start(timeout: timedelta) -> dist.Store:
    """Return a part of torchrun's store that nobody has used before, the same on all ranks.

    torchrun keeps its store when it starts workers again, and nothing that it tells them is new each time on every
    host: rank 1 would find the address of a rank 0 that is dead (pytorch issue 135712). So each rank asks rank 0
    under a name of its own making, which only a living rank 0 can answer, with the part's name. Not used where
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun give each start a store of its own (the launch files do).
    """
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if launched_rank() != 0:
        question = uuid.uuid4().hex
        store.set(f"vqvae2/question/{launched_rank()}", question)
        name = store.get(f"vqvae2/answer/{question}").decode()
        store.set(f"{name}/heard/{launched_rank()}", "")
        return dist.PrefixStore(name, store)
    name, end = f"vqvae2/{uuid.uuid4().hex}", time.monotonic() + timeout.total_seconds()
    waiting = set(range(1, launched_world_size()))
    while waiting:
        for asking in sorted(waiting):
            if store.check([f"{name}/heard/{asking}"]):
                waiting.remove(asking)
            elif store.check([f"vqvae2/question/{asking}"]):
                store.set(f"vqvae2/answer/{store.get(f'vqvae2/question/{asking}').decode()}", name)
        if time.monotonic() > end:
            raise RuntimeError(f"expected all ranks to join within {timeout} (--timeout-minutes), found nothing from "
                               f"{sorted(waiting)}. See to their machines.")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)
