"""The outcome of a scan -> its sidecar in `<out>/.scans/`, and back, so that a killed extraction goes on.

The sidecar is one JSON file a scan. It is written when all images of the scan are there, or when the scan is rejected,
and it stays for the next run. An outcome belongs to a plan, the hash of all settings and scans of an extraction: the
extraction is done when every scan has an outcome of its plan, whichever process has worked on it.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

from vqvae2.common.errors import UserError
from vqvae2.common.files import replace_whole
from vqvae2.scans.readers import files_of

SIDECARS = ".scans"
"""The folder of the sidecars and of the lock."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of the work on one scan."""

    scan: str
    """The scan's name."""
    plan: str
    """Hash of what all processes of one extraction must agree on."""
    pixels: str
    """Hash of the settings that decide how a scan is drawn."""
    times: list[int]
    """When the scan's files were last written, in ns, asked before they were read; empty if that cannot be told."""
    rows: list[dict] = dataclasses.field(default_factory=list)
    """A row for each image; none if the scan is rejected."""
    reason: str = ""
    """Why the scan is rejected."""
    unchanged: bool = False
    """True where nothing had to be drawn."""


def sidecar(out: Path, scan: str) -> Path:
    """Return the path of the sidecar of a scan, by the scan's name."""
    return out / SIDECARS / f"{hashlib.sha256(scan.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def note(out: Path, outcome: Outcome) -> None:
    """Write a scan's sidecar. Raises: UserError if `out` cannot be written."""
    with writing(out):
        replace_whole(sidecar(out, outcome.scan), json.dumps(dataclasses.asdict(outcome)).encode(), synced=False)


def recall(out: Path, scan: str) -> Outcome | None:
    """Return what became of a scan when it was last worked on; None if nothing is known of it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Outcome(**json.loads(sidecar(out, scan).read_bytes()))


def times_of(path: Path) -> list[int]:
    """Return `Outcome.times` of a scan."""
    try:
        return [os.stat(part).st_mtime_ns for part in files_of(path)]
    except OSError:
        return []


@contextlib.contextmanager
def lock(out: Path, kind: int) -> Iterator[bool]:
    """Hold the folder of slices; yield True if it is held, and False if somebody else holds it.

    Args:
        kind: fcntl.LOCK_SH for one of several processes that draw parts, LOCK_EX for the only process at work; with
            LOCK_NB this does not wait for others.
    A file system that has no locks holds nobody back.
    """
    with writing(out):
        (out / SIDECARS).mkdir(parents=True, exist_ok=True)
        file = open(out / SIDECARS / "lock", "a", encoding="utf-8")  # noqa: SIM115, closed below
    with file:
        try:
            fcntl.flock(file, kind)
            held = True
        except OSError as error:
            held = not isinstance(error, BlockingIOError)
        yield held


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what can go wrong while a folder of slices is written, such as a full disk, into an error of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be written, found "
                        f"{(error.strerror or str(error)).lower()}. Make room, or name another folder; running "
                        "again goes on from here.") from None


def write(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Write a file so that it is there whole or not at all. Raises: UserError if the folder cannot be written."""
    with writing(path.parent):
        replace_whole(path, content, synced=synced)


def csv_bytes(columns: Iterable[str], rows: Iterable[dict]) -> bytes:
    """Return a table with one header line, lines ending in a newline on every system; a cell that
    a row lacks is empty, and a value without a column is left out."""
    lines: list[str] = []
    # Before Python 3.13 csv quotes a carriage return, which may be in a name, only where lines end with one.
    each_line = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
    writer = csv.DictWriter(each_line, list(columns), extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "".join(lines).encode("utf-8", "surrogateescape")
