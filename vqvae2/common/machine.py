"""This machine -> threads, the precision of matrix products, compilation, and signals that ask a run to stop."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from vqvae2.common.errors import Stopped, Stopping, stop_signals

HEAP = 7 * 2**28
"""Bytes of addresses that `keep_memory` asks to have large pages, more than most trainings on a CPU need."""
LARGE_PAGE = 2**21


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Use `threads` CPU threads, by default the cores that this process may use, shared with its neighbours.

    torchrun sets one thread for each process, which would leave most of a machine idle.
    """
    torch.set_num_threads(threads or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def keep_memory() -> bool:
    """Make the C library keep freed memory for the next allocations; return whether it can (only glibc can).

    By default glibc returns the memory of a tensor of some megabytes to the system at once, and the system clears the
    pages again for the next tensor: a twentieth of a training step on the CPU. And pages of 2 MB, where Linux gives
    them to whoever asks, spare the CPU most of its look-ups of where a page is. The peak of memory does not change, but
    for a part of such a page. Call this before the first step.
    """
    try:
        library = ctypes.CDLL(None)
        set_option, allocate, free, advise = library.mallopt, library.malloc, library.free, library.madvise
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return False
    # From malloc.h: M_MMAP_MAX (no maps of their own), M_TRIM_THRESHOLD (give nothing back), M_TOP_PAD (take 64 MB).
    is_kept = all([set_option(-4, 0), set_option(-1, 2**31 - 1), set_option(-2, 64 * 2**20)])
    # What is taken here is an address range that comes to have memory as it is written to, after it is given back.
    allocate.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if is_kept and (address := allocate(ctypes.c_size_t(HEAP))):
        begin = -(-address // LARGE_PAGE) * LARGE_PAGE
        advise(begin, (address + HEAP - begin) // LARGE_PAGE * LARGE_PAGE, 14)  # MADV_HUGEPAGE
        free(address)
    return is_kept


def choose_precision(asked: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision of matrix products, and why: for "auto" bf16 where the device computes it natively.

    A CPU with AVX2 alone emulates bf16, a hundred times slower than fp32.
    """
    if asked != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[asked], "as asked"
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "native on this GPU") if is_native else (torch.float32, "this GPU has no native bf16")
    if device.type != "cpu":
        return torch.float32, f"bf16 is not tried on {device.type}"
    flags = cpu_flags()
    if not flags:
        return torch.float32, "the system does not say whether this CPU has native bf16"
    if units := {name for flag, name in BF16_UNITS.items() if flag in flags}:
        return torch.bfloat16, f"this CPU has {' and '.join(sorted(units))}"
    return torch.float32, "this CPU has none of " + ", ".join(sorted(set(BF16_UNITS.values())))


def in_words(device: torch.device, precision: tuple[torch.dtype, str], compiled: tuple[bool, str]) -> str:
    """Return the chosen device, precision and compilation, and the reasons, for the first line of a run."""
    name = str(precision[0]).removeprefix("torch.")
    is_lent_no_gpu = device.type == "cpu" and torch.backends.mps.is_available()
    return (f"{device.type}, {name} ({precision[1]}), {'compiled' if compiled[0] else 'not compiled'} ({compiled[1]})"
            f"{' (MPS serves one process only: start one without torchrun to use it)' if is_lent_no_gpu else ''}")


BF16_UNITS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "bf16": "ARM BF16"}
"""Flags of /proc/cpuinfo (x86, x86, ARM) -> what of a CPU multiplies bf16."""


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the abilities of this CPU as the system lists them; nothing where there is no list (not Linux).

    torch's own functions for this are private and differ between versions: torch 2.11 has none for AMX-BF16 or ARM.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    return {flag for line in lines if line.split(":")[0].strip() in ("flags", "Features")
            for flag in line.partition(":")[2].split()}


def compile_where_it_pays(asked: str, device: torch.device, parts: list[nn.Module]) -> tuple[bool, str]:
    """Compile the networks `parts` with torch.compile where it pays; return whether they were compiled, and why.

    "auto" compiles on CUDA alone: on a CPU the convolutions of an autoencoder take nine tenths of a step, which
    compiling leaves as they are (docs/benchmarks.md). A tiny function is compiled first, so that a run never fails
    because no compiler is installed.
    """
    if not parts:
        return False, "no part of this model is for it"
    if asked == "never":
        return False, "as asked"
    if asked == "auto" and device.type != "cuda":
        return False, f"does not pay on {device.type}"
    if failure := why_not_compiled(device):
        return False, f"torch.compile does not work here: {failure}"
    # A part meets the shapes of a full batch and of the last batch, in training and in validation. Beyond this limit,
    # by default 8 shapes, torch does not compile.
    torch._dynamo.config.recompile_limit = 64
    for part in parts:
        # Not part.compile(): for an nn.Sequential that compiles only those layers that are not torch's own.
        part.forward = torch.compile(part.forward, dynamic=False)
    return True, "as asked" if asked == "always" else "torch.compile works on this GPU"


def why_not_compiled(device: torch.device) -> str:
    """Compile, run and differentiate something tiny on `device`; return the error in one line, if there is one."""
    # The number differs each time: otherwise a cached kernel of an earlier run would hide that the compiler is gone.
    number = 2 + time.time_ns() % 10**6

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return (x * number + 1).relu().sum()

    try:
        x = torch.ones(64, device=device, requires_grad=True)
        torch.compile(tiny, dynamic=False)(x).backward()
        if x.grad is None or x.grad.ne(number).any():
            return "it computes something else"
    except Exception as error:  # a missing compiler may raise anything; the run continues without compilation
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}{': ' + lines[0][:150] if lines else ''}"
    return ""


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values` on `device`. But to MPS, the copy is from pinned memory, and the host does not wait for it."""
    if values.device.type == "cpu" and device.type not in ("cpu", "mps"):
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Signals:
    """While in this context, `errors.STOP_SIGNALS` do not end the process; `came` becomes True instead. Around work
    that may be interrupted without loss, use `stopping_at_once`: then a signal ends the run immediately.
    """

    def __init__(self) -> None:
        self.came = False
        self._message: str | None = None
        self._stopping = Stopping()

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._note) for number in stop_signals()}

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if raised is not None and issubclass(raised, Stopped):
            return  # another signal while the process ends must not change its exit status
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def stopping_at_once(self, message: str) -> Iterator[None]:
        """Inside this context, raise Stopped with `message` when a signal comes, or at once if a signal came before."""
        self._message, self._stopping = message, Stopping()
        try:
            with self._stopping.around():
                if self.came:
                    raise Stopped(message)
                yield
        finally:
            self._message = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._message is not None:
            self._stopping.raise_it(number, frame, self._message)


@contextmanager
def going_on_later(what: str, folder: Path) -> Iterator[None]:
    """Inside this context, end at a signal: all `what` ("images") that are finished are in `folder`."""
    signals = Signals()
    with signals, signals.stopping_at_once(f"Stopped by a signal, all finished {what} saved: {folder}. The same "
                                           "command goes on from here."):
        yield
