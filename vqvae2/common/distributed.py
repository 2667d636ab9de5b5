"""Values of one process -> values of all processes. Only this module uses torch.distributed.

Every function here works without a process group (one process): rank 0 of 1, and a collective
returns its input. Every rank must call each collective, in the same order.
"""

import gc
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import NoneType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vqvae2.common.errors import Stopped, UserError, expect, launched_rank

Value = TypeVar("Value")


def launched_world_size() -> int:
    """Return the number of processes that torchrun starts, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_device() -> torch.device:
    """Return this process's device: its CUDA GPU, MPS for a single process, else the CPU."""
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        expect(processes <= gpus, f"--nproc_per_node {processes}", "at most one process for each GPU",
               f"{gpus} GPU(s)", "Start fewer processes.")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if torch.backends.mps.is_available() and launched_world_size() == 1:
        return torch.device("mps")
    return torch.device("cpu")


def start(device: torch.device, minutes: float = 10) -> None:
    """Join the processes that torchrun launched, by NCCL on CUDA and gloo elsewhere; a single process does nothing.

    Args:
        minutes: how long a collective waits for the other ranks before it fails. A machine whose network link is cut
            sends no error, so only this limit ends the wait.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched_world_size() > 1 and not dist.is_initialized():
        backend, timeout, own = "nccl" if device.type == "cuda" else "gloo", timedelta(minutes=minutes), {}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            own = {"store": _store_of_this_start(timeout), "rank": launched_rank(), "world_size": launched_world_size()}
        dist.init_process_group(backend, timeout=timeout, **own)


def _store_of_this_start(timeout: timedelta) -> dist.Store:
    """Return a part of torchrun's store that nobody has used before, the same on all ranks.

    torchrun keeps its store when it restarts workers, and none of the variables that it gives them is new at each
    restart on every host: rank 1 would find the address of a dead rank 0 (pytorch issue 135712). So each rank asks rank
    0 under a name that the rank has just made up; only a living rank 0 can answer, with the name of the part. This
    function is not used where TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun give each start a store of its own
    (the launch files do).
    """
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if launched_rank() != 0:
        question = uuid.uuid4().hex
        store.set(f"vqvae2/question/{launched_rank()}", question)
        _wait(lambda: store.check([f"vqvae2/answer/{question}"]), {0}, timeout)
        name = store.get(f"vqvae2/answer/{question}").decode()
        store.set(f"{name}/heard/{launched_rank()}", "")
        return dist.PrefixStore(name, store)
    name, waiting = f"vqvae2/{uuid.uuid4().hex}", set(range(1, launched_world_size()))

    def all_have_heard() -> bool:
        for asking in sorted(waiting):
            if store.check([f"{name}/heard/{asking}"]):
                waiting.remove(asking)
            elif store.check([f"vqvae2/question/{asking}"]):
                store.set(f"vqvae2/answer/{store.get(f'vqvae2/question/{asking}').decode()}", name)
        return not waiting

    _wait(all_have_heard, waiting, timeout)
    return dist.PrefixStore(name, store)


def _wait(is_ready: Callable[[], bool], others: set[int], timeout: timedelta) -> None:
    """Wait for other ranks, and react to signals meanwhile, which a process inside the store cannot do."""
    end = time.monotonic() + timeout.total_seconds()
    while not is_ready():
        if time.monotonic() > end:
            raise RuntimeError(f"expected all ranks to join within {timeout} (--timeout-minutes), found nothing from "
                               f"{sorted(others)}. See to their machines.")
        time.sleep(0.01)


def stop() -> None:
    """Leave the process group, if there is one. Delete the model that `wrap` returned before calling this.

    The group's threads need Python's lock to let go of a tensor. Whoever holds the last reference to the group waits
    for these threads; a wrapped model does so while holding that lock: a deadlock, or at the end of the interpreter
    perhaps an abort (torch 2.13, gloo: loops of two ranks hung within 40 ends). Without the wrapped model the group
    ends properly.
    """
    # NCCL ends by agreement, which a rank that has failed cannot wait for; its process ends anyway.
    failed = not isinstance(sys.exc_info()[1], (Stopped, NoneType))
    if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):
        gc.collect()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def wait_for_all(seconds_between_looks: float = 0.05) -> None:
    """Wait until every rank is here, and react to signals meanwhile, which a process inside a collective cannot do.

    The wait may last as long as the `minutes` that were given to `start`.
    """
    if world_size() > 1:
        work = dist.barrier(async_op=True)
        while not work.is_completed():
            time.sleep(seconds_between_looks)
        work.wait()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over all ranks (the same shape on each); every rank gets the same bits."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def from_rank_0(values: torch.Tensor) -> torch.Tensor:
    """Return rank 0's `values` on every rank; all pass the same shape and type."""
    if world_size() == 1:
        return values
    copy = values.clone()
    dist.broadcast(copy, src=0)
    return copy


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is set on at least one rank."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item() > 0)


def gather_objects(value: object) -> list:
    """Return every rank's `value` (picklable, made by this program), in the order of the ranks."""
    if world_size() == 1:
        return [value]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def together(work: Callable[[], Value]) -> Value:
    """Return `work()`; if it raises a UserError on some ranks, raise the error of the first of them on all ranks.

    If only one rank raised, the others would wait for it. Every rank must call this; a rank that waits for the others
    reacts to signals.
    """
    value, found = None, None
    try:
        value = work()
    except UserError as error:
        found = str(error)
    wait_for_all()
    if failures := [failure for failure in gather_objects(found) if failure is not None]:
        raise UserError(failures[0])
    return value


def on_rank_0(work: Callable[[], Value]) -> Value | None:
    """Do `work` on rank 0 and return what it returns, None on the others; a UserError there is raised on all.

    Every rank must call this.
    """
    return together(work if rank() == 0 else lambda: None)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with its gradients averaged over ranks; with one process, the model itself.

    Buffers are not broadcast: rank 0's codebook on every rank would hide that it was learned from
    one rank's share of the data. The codebooks stay equal because their statistics are summed over the ranks.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    # The warning is about 1 x 1 kernels, whose layout in memory is ambiguous: copying their gradients costs nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, which 2.6 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False,
                                       gradient_as_bucket_view=True)


def without_gradient_exchange(model: nn.Module) -> AbstractContextManager:
    """Return a context in which a backward pass keeps its gradients local: for all micro-batches but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def check_same_on_ranks(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise RuntimeError, on all ranks, with the name of the first tensor whose bits differ between ranks.

    Every rank passes the same names and shapes, in the same order. Only two numbers per tensor are exchanged.
    """
    if world_size() == 1:
        return
    named, sums = list(tensors), []
    for _, tensor in named:
        # The sum of a tensor's bits as integers, and their sum weighted by place (Fletcher), both modulo 2^64.
        flat = tensor.detach().contiguous().flatten()
        bits = flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8).long()
        sums.append(torch.stack([bits.sum(), (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()]))
    least, most = torch.stack(sums), torch.stack(sums)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    for (name, _), differs in zip(named, (least != most).any(1).tolist()):
        if differs:
            raise RuntimeError(f"{name}: expected the same values on every rank, found a difference. "
                               "This is a bug of ours: training was stopped so that no result rests on it.")
