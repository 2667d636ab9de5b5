"""Finished scans -> a journal of their part of the work, and back, so that a killed extraction goes on.

One line of JSON a finished scan. A part begins with {"start": plan} and is done when its last line is {"end": plan};
the plan is a hash of what all parts must agree on. What was written before the last start is of earlier runs, and
so are the journals of another number of parts; "at" tells which line about a scan is the newest.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from vqvae2.common.errors import UserError
from vqvae2.settings.checks import expect


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one scan."""

    rows: list[dict]
    """Of its images; empty if it is rejected."""
    unchanged: bool = False
    """True where nothing had to be drawn."""
    reason: str = ""
    """Why it is rejected."""
    changed: int | None = None
    """When its files were last written, in ns, looked at before they were read; None if that cannot be told."""


class Journal(contextlib.AbstractContextManager):
    """One part of an extraction at work; only one process may hold it.

    Raises: UserError if another process does, or, from each method, if the folder cannot be written.
    """

    def __init__(self, out: Path, part: tuple[int, int], plan: str, pixels: str):
        self._out, self._plan, self._pixels = out, plan, pixels
        path = journal_path(out, part)
        interrupted = path.exists()
        others = [path for path in journals(out) if not path.name.endswith(f"-of-{part[1]}.jsonl")]
        with writing(out):
            for other in others:
                with contextlib.suppress(FileNotFoundError), open(other, "r+", encoding="utf-8") as file:
                    _lock(file, out)
            self._file = open(path, "a", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115, see __exit__
            _lock(self._file, out)
            # A killed run may have left half a line.
            self._file.write("\n")
        self._write({"start": plan, "interrupted": interrupted or bool(others)})

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take has been told
            self._file.close()

    def add(self, scan: str, outcome: Outcome) -> None:
        """Note a finished scan by its name."""
        self._write({"scan": scan, "pixels": self._pixels, "at": time.time_ns(), **dataclasses.asdict(outcome)})

    def end(self) -> None:
        """Note that the part is done."""
        self._write({"end": self._plan})
        with writing(self._out):
            os.fsync(self._file.fileno())

    def _write(self, line: dict) -> None:
        with writing(self._out):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


@contextlib.contextmanager
def nobody_at_work(out: Path) -> Iterator[None]:
    """Wait until no process holds a journal, and let none take one meanwhile."""
    with contextlib.ExitStack() as locks:
        for path in journals(out):
            with writing(out), contextlib.suppress(FileNotFoundError):
                _lock(locks.enter_context(open(path, "r+", encoding="utf-8")), out, wait=True)
        yield


def _lock(file: io.TextIOBase, out: Path, *, wait: bool = False) -> None:
    """Lock a journal until it is closed, where the file system can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        at_work = not wait and not os.path.exists(file.name)  # who held it has just removed it
    except OSError as error:
        at_work = isinstance(error, BlockingIOError)
    expect(not at_work, f"--out {out}", "a folder in which no other extraction is at work", "one",
           "Wait for it to end, or name another folder.")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make one line of what can go wrong while a folder of slices is written: a full disk, a permission."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be written, found "
                        f"{(error.strerror or str(error)).lower()}. Make room, or name another folder; running "
                        "again goes on from here.") from None


def journals(out: Path) -> list[Path]:
    """Return all journals in a folder of slices."""
    return sorted(out.glob(".part-*-of-*.jsonl"))


def journal_path(out: Path, part: tuple[int, int]) -> Path:
    """Return where the journal of part (I, N) is."""
    return out / f".part-{part[0]}-of-{part[1]}.jsonl"


def outcomes_of_parts(out: Path, parts: int, plan: str) -> tuple[dict[str, Outcome], bool, list[int]]:
    """Return every scan's outcome by the journals, whether one was interrupted, and the parts that are not done."""
    outcomes: dict[str, Outcome] = {}
    missing, interrupted = [], False
    for number in range(1, parts + 1):
        lines = list(lines_of(journal_path(out, (number, parts))))
        starts = [index for index, line in enumerate(lines) if "start" in line]
        if not starts or lines[-1].get("end") != plan:
            missing.append(number)
            continue
        interrupted |= any(lines[index]["interrupted"] for index in starts)
        for line in lines[starts[-1] + 1:-1]:
            outcomes[line["scan"]] = Outcome(line["rows"], line["unchanged"], line["reason"])
    return outcomes, interrupted, missing


def parts_begun(out: Path) -> list[int]:
    """Return every N of which there is a journal, I of N."""
    return sorted({int(re.search(r"-of-(\d+)", path.name)[1]) for path in journals(out)})


def remove_journals(out: Path, parts: int) -> None:
    """Remove all journals; last those of these parts, which know more than what others tell of earlier runs."""
    own = {journal_path(out, (number, parts)) for number in range(1, parts + 1)}
    with writing(out):
        for path in sorted(journals(out), key=own.__contains__):
            path.unlink(missing_ok=True)


def drawn_before(out: Path) -> list[tuple[str, list[dict]]]:
    """Return the rows of each scan that was drawn, and the hash of their settings of pixels; the newest last."""
    lines = [line for path in journals(out) for line in lines_of(path) if line.get("rows")]
    return [(line["pixels"], line["rows"]) for line in sorted(lines, key=lambda line: line.get("at", 0))]


def lines_of(path: Path) -> Iterator[dict]:
    """The lines of a journal that are whole."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(record := json.loads(line), dict):
                    yield record
