"""The kernel's counters -> how much memory this process may still take, so that a large request is refused in time.

A process that takes more than there is gets no error: the kernel ends it, or another one.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

_room: ContextVar[int | None] = ContextVar("room", default=None)


def memory_available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory this process may still take, by the kernel's estimate; half of the machine's
    memory where the system has none.

    A container, a Slurm job and a Kubernetes pod are control groups, and each of the groups around this process may
    have a limit of its own. What a group has read from files and not used again counts as free, as it does for the
    whole machine: the kernel gives these pages up first.
    """
    free = []
    with suppress(OSError, StopIteration), (proc / "meminfo").open() as lines:
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError), (proc / "self/cgroup").open() as lines:
        for line in lines:
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if controllers in ("", "memory"):
                # A container may not see the groups around its own, which then lies at the top of what it sees.
                inside = groups / controllers / group.strip("/")
                free += [left for folder in (inside, *inside.parents) if folder.is_relative_to(groups)
                         for left in _left(folder)]
    return max(0, min(free or [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]))


def _left(group: Path) -> list[int]:
    """Return how many bytes each limit of one group (version 2 or 1 of the kernel's interface) leaves to it."""
    found = []
    for limit, used, idle in (("memory.max", "memory.current", "inactive_file "),
                              ("memory.high", "memory.current", "inactive_file "),
                              ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")):
        with suppress(OSError, ValueError, StopIteration):  # there is no such file, or no limit ("max")
            lines = (group / "memory.stat").read_text().splitlines()
            found.append(int((group / limit).read_text()) - int((group / used).read_text())
                         + next(int(line.split()[1]) for line in lines if line.startswith(idle)))
    return found


def room() -> int:
    """Return how many bytes this process may take for one piece of work: its share, else all that is free now."""
    share = _room.get()
    return memory_available() if share is None else share


def set_room(share: int) -> None:
    """Let `room` return `share` from now on."""
    _room.set(max(0, share))


@contextmanager
def only(share: int) -> Iterator[None]:
    """Let `room` return `share` inside of the block."""
    before = _room.set(max(0, share))
    try:
        yield
    finally:
        _room.reset(before)


@contextmanager
def without_collection() -> Iterator[None]:
    """Let Python not look for cycles among objects that are made here by the million and all kept: rows of a manifest,
    or what a large module consists of. Looking takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
