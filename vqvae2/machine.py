"""This machine -> threads, the precision of matrix products, and signals that ask a run to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vqvae2.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def set_threads(threads: int | None) -> None:
    """Use `threads` CPU threads, by default the cores that this process may use, shared with its neighbours.

    torchrun sets one thread for each process, which would leave most of a machine idle.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def choose_precision(asked: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision of matrix products, and why: for "auto" bf16 where the device computes it natively.

    A CPU with AVX2 alone emulates bf16, a hundred times slower than fp32.
    """
    if asked != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[asked], "as asked"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # A private question, which not every version of torch answers; without an answer fp32 is safe.
        ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        native = device.type == "cpu" and ask is not None and ask()
    return (torch.bfloat16, "native here") if native else (torch.float32, "bf16 is not native here")


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values` on `device`; the host does not wait for the copy, which starts from pinned memory on CUDA."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Signals:
    """While in this context, SIGINT, SIGTERM and SIGUSR1 do not end the process; `came` becomes True instead.

    Where nothing is lost by it, `stopping_at_once` makes them end the run there and then.
    """

    def __init__(self) -> None:
        self.came = False
        self._message: str | None = None

    def __enter__(self) -> None:
        self.before = [signal.signal(number, self._note) for number in STOP_SIGNALS]

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(STOP_SIGNALS, self.before):
            signal.signal(number, handler)

    @contextmanager
    def stopping_at_once(self, message: str) -> Iterator[None]:
        """Within, raise Stopped with `message` as soon as a signal comes, or at once if one has come before."""
        self._message = message
        try:
            if self.came:
                raise Stopped(message)
            yield
        finally:
            self._message = None

    def _note(self, *_: object) -> None:
        again, self.came = self.came, True
        if self._message is not None and not again:  # a second signal must not disturb the ending
            raise Stopped(self._message)
