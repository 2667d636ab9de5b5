"""The kernel's counters -> how much memory this process may still take, so that a large request is refused in time.

A process that takes more than there is gets no error: the kernel ends it, or another one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control groups that this process is in, and the folder below which their counters are."""
VERSION_2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""The files of a control group's limit and use in bytes, and the lines of its memory.stat that count cached files."""
_room: ContextVar[int | None] = ContextVar("room", default=None)


def memory_available() -> int:
    """Return how many bytes are free, by the kernel's estimate, on this machine and in each control group (of a
    container, a batch job) that this process is in; where no kernel says it, half of the machine's memory."""
    return max(0, min([_free_on_this_machine(), *_free_in_groups()]))


def _free_on_this_machine() -> int:
    with suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group with a limit leaves; cached files count as free, for the kernel drops them."""
    groups = []
    with suppress(OSError):
        groups = [line.split(":", 2) for line in GROUPS.read_text().splitlines() if line.count(":") > 1]
    for _, controllers, place in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        names, roots = (VERSION_1, [MOUNTED / "memory"]) if controllers else (VERSION_2, [MOUNTED, MOUNTED / "unified"])
        for root in roots:
            folder = root / place.strip("/")  # inside of a container it may not be there; its root is the container's
            for each in (folder, *(above for above in folder.parents if above.is_relative_to(root))):
                with suppress(OSError, ValueError, KeyError):  # no such group, or "max", which is no limit
                    limit, used = (int((each / name).read_text()) for name in names[:2])
                    counts = dict(line.split() for line in (each / "memory.stat").read_text().splitlines())
                    yield limit - used + sum(int(counts[name]) for name in names[2])


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
