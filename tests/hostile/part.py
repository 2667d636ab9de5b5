"""What strangers and faults may do to a command, numbered -> for each try one word for how it ended.

A part (pictures, manifests, kills, …) is a module of this package with a `PART`. `make soak` makes all of its tries,
the suite the first few. A try is told by its number alone, so that one that failed can be repeated.
"""

import copy
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from ranks import PRELOADED  # a process that has loaded these makes a start cheap
from torch import multiprocessing

ALLOWED = (0, 2, 75)
"""Exit statuses of a command that nobody killed: done, an error that its user can mend, stopped with all saved."""


@dataclass(frozen=True)
class Part:
    """One row of the table in docs/reliability.md.

    Args:
        name: as in `make soak PART=pictures`, and the module's.
        inputs: what is tried, in words for the table.
        count: tries of a whole soak.
        try_one: (number, an empty folder, the folder that `prepare` filled) -> one word for how it ended, such as
            "refused", "skipped", "resumed". Raises AssertionError where something is lost, hangs or ends in a
            traceback; any other exception counts as that too.
        prepare: fills a folder with what all tries share, once; tries must not change it.
        in_suite: tries that the test suite makes.
    """

    name: str
    inputs: str
    count: int
    try_one: Callable[[int, Path, Path], str]
    prepare: Callable[[Path], object] = lambda _: None
    in_suite: int = 5


@dataclass(frozen=True)
class Ended:
    """How a command ended. A negative status is the signal that killed it, as subprocess has it."""

    status: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    """Most memory that the process held, what was loaded before it began included."""


def command(words: Sequence[object], folder: Path, *, limit: float = 120, memory: int | None = None,
            environment: dict[str, str] | None = None, while_running: Callable[[int], object] | None = None) -> Ended:
    """Return how `vqvae2 words…`, run in `folder` in a process of its own, ended; torch is loaded already.

    Args:
        limit: seconds, after which the process is killed and the try has failed: it hangs.
        memory: bytes of address space that the process may take beyond what it begins with.
        while_running: called with the process's id as soon as it has begun, such as to kill it.
    Raises: AssertionError if it hangs or prints a traceback.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    began = time.monotonic()
    process = context.Process(target=_run, args=([str(word) for word in words], folder, memory, environment or {}))
    process.start()
    if while_running is not None:
        while_running(process.pid)
    process.join(limit)
    hangs = process.exitcode is None
    if hangs:
        process.kill()
        process.join()
    texts = [(folder / name).read_text(errors="replace") if (folder / name).exists() else "" for name in OUTPUT]
    peak = int((folder / PEAK).read_text() or 0) if (folder / PEAK).exists() else 0
    for name in (*OUTPUT, PEAK):
        (folder / name).unlink(missing_ok=True)
    assert not hangs, f"vqvae2 {' '.join(map(str, words))} hangs: {texts[1][-2000:]}"
    ended = Ended(process.exitcode, *texts, time.monotonic() - began, peak)
    assert "Traceback" not in ended.err, ended.err[-4000:]
    return ended


OUTPUT, PEAK = (".stdout", ".stderr"), ".peak"


def _run(words: list[str], folder: Path, memory: int | None, environment: dict[str, str]) -> None:
    import resource

    os.chdir(folder)
    for stream, name in enumerate(OUTPUT, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ.update(environment)
    torch.set_num_threads(1)
    if memory is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory,) * 2)
    sys.argv = ["vqvae2", *words]
    status = 1
    try:
        from vqvae2.commands import main
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):  # the command may have been given a full disk
            Path(PEAK).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        os._exit(status)  # torch's threads and handlers of the process it was forked from have no part in this


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise AssertionError if what is done in this context hangs."""
    def hangs(*_: object) -> None:
        raise AssertionError(f"hangs: no end after {seconds} s")
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def with_one_change(value: dict, values: Sequence[object], chance: random.Random) -> dict:
    """Return nested dicts and lists in which one value, wherever it stands, is gone or one of `values`."""
    changed = copy.deepcopy(value)
    *way, last = chance.choice(_places_in(value))
    owner = changed
    for key in way:
        owner = owner[key]
    if chance.random() < 0.2:
        del owner[last]
    else:
        owner[last] = chance.choice(values)
    return changed


def _places_in(value: object, way: tuple = ()) -> list[tuple]:
    """Return the ways to all values below a value."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in below for place in ((*way, key), *_places_in(item, (*way, key)))]
