"""A folder that a command writes to -> this process's alone while it writes there.

A process that writes to a folder holds a lock (flock) on the file `.lock` in it, which says who holds it. The system
lifts the lock however the process ends; a file that a killed process leaves there does no harm. A second start waits
for PATIENCE seconds, since a run that was told to stop may need them, and is then refused before it has changed
anything. Several ranks of one start are one run: rank 0 claims the folder before any of them writes.

Only whoever holds the lock removes files that killed processes left half-written: no living process writes them.

NOTE Some disks have no locks. There nobody is refused, and half-written files are removed when they are OLD. The same
holds for a process that its launcher has started in place of a lost one that may still hold the lock on another
machine: `state.check_alone` ends a training whose state another one has written.
"""

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import LEFT_OVERS, check_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
PATIENCE = 10.0
"""Seconds for which a second start waits for the first to end."""
OLD = 3600.0
"""Seconds after which nobody can be writing a file any more."""


@dataclass(frozen=True)
class Claim:
    """A folder that this process writes to.

    Attributes:
        alone: False if another process may write there too, because there is no lock.
    """

    folder: Path
    alone: bool

    def remove_left_overs(self, *inner: str) -> None:
        """Remove what killed processes left half-written in the folder and in the folders of these names in it."""
        for name in ("", *inner):
            for path in (self.folder / name).glob(LEFT_OVERS):
                with suppress(OSError):
                    if self.alone or time.time() - path.stat().st_mtime > OLD:
                        path.unlink()


@contextmanager
def claimed(folder: Path, name: str, flag: str = "--out", patience: float | None = None) -> Iterator[Claim]:
    """Let no other process claim `folder` meanwhile; it is made where it is not there, and removed if it stays empty.

    Args:
        name: how the user names the folder, such as `--out report`, for error messages.
        flag: the flag that names another folder.
        patience: seconds to wait for another process that writes there. Default: PATIENCE.
    Raises: UserError if another process has claimed it, or it cannot be written.
    """
    check_folder(folder, flag)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        file = _lock(folder / LOCK, name, flag, PATIENCE if patience is None else patience)
        try:
            yield Claim(folder, file is not None)
        finally:
            if file is not None:
                if _is_at(file, folder / LOCK):
                    (folder / LOCK).unlink(missing_ok=True)  # while it is held: whoever waits looks whether it is there
                file.close()
    finally:
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _lock(path: Path, name: str, flag: str, patience: float) -> TextIO | None:
    """Return the locked file; None where the disk has no locks, or the holder is a lost process of this very start."""
    end, missing = None, 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            missing += 1
            if isinstance(error, FileNotFoundError) and missing < 100:
                continue  # its holder has just removed the folder, which was empty
            raise UserError(f"{name}: expected a folder that can be written, found {error.strerror or error}. "
                            f"Choose another {flag}.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            if end is None:
                end = time.monotonic() + patience
                print(f"{name}: {_in_words(holder)} is still writing there; waiting for it to end"
                      f"{f', {patience:g} seconds at most' if math.isfinite(patience) else ''}", flush=True)
            if time.monotonic() >= end:
                expect(_is_of_this_start(holder), name, "a folder that no other process writes to", _in_words(holder),
                       f"Wait for it to end, or choose another {flag}. (If its machine has crashed, delete {LOCK} "
                       "there.)")
                return None
            time.sleep(0.05)
        except (OSError, AttributeError):  # the disk has no locks, or the system
            file.close()
            with suppress(OSError):
                path.unlink()
            return None
        else:
            if _is_at(file, path):
                _sign(file)
                return file
            file.close()  # the one before has removed it: this lock holds nobody back


def _in_words(holder: dict) -> str:
    return "process {process} on {host}".format(**holder) if holder else "another process"


def _is_at(file: TextIO, path: Path) -> bool:
    """Return whether the open file is the one that now has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _sign(file: TextIO) -> None:
    """Write into a lock file who holds it."""
    with suppress(OSError):  # a full disk is found by what is written next
        file.truncate(0)
        os.write(file.fileno(), json.dumps(_own_name()).encode())  # nothing stays in a buffer, for `close` to fail on


def _holder(file: TextIO) -> dict:
    """Return what `_sign` has written, {} where it has not yet."""
    with suppress(OSError, ValueError, RecursionError):
        file.seek(0)
        found = json.loads(file.read(1000))
        return found if isinstance(found, dict) and found.keys() >= {"process", "host"} else {}
    return {}


def _own_name() -> dict:
    start = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return {"process": os.getpid(), "host": platform.node(),
            "start": None if start == "none" else start, "job": os.environ.get("SLURM_JOB_ID")}


def _is_of_this_start(holder: dict) -> bool:
    """Return whether torchrun or Slurm has started this process in place of the holder, which it has lost sight of."""
    own = _own_name()
    return bool(holder) and (
        int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        or (own["start"] is not None and own["start"] == holder.get("start"))
        or (own["job"] is not None and own["job"] == holder.get("job") and own["host"] != holder["host"]))
