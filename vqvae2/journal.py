"""Finished scans -> a journal of their part of the work, and back, so that a killed extraction goes on.

One line of JSON a finished scan. A part begins with {"start": plan} and is done when its last line is {"end": plan};
the plan is a hash of what all parts must agree on. What was written before the last start is of earlier runs.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vqvae2.errors import UserError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one scan."""

    rows: list[dict]
    """Of its images; empty if it is rejected."""
    unchanged: bool = False
    """True where nothing had to be drawn."""
    reason: str = ""
    """Why it is rejected."""


class Journal(contextlib.AbstractContextManager):
    """One part of an extraction at work; only one process may hold it.

    Raises: UserError if another process does.
    """

    def __init__(self, out: Path, part: tuple[int, int], plan: str, pixels: str):
        self._plan, self._pixels = plan, pixels
        self._path = journal_path(out, part)
        interrupted = self._path.exists()
        others = [path for path in journals(out) if not path.name.endswith(f"-of-{part[1]}.jsonl")]
        for path in others:
            with open(path, "a", encoding="utf-8") as file:
                _lock(file, out)
        self._file = open(self._path, "a", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115, see __exit__
        _lock(self._file, out)
        # A killed run may have left half a line.
        self._file.write("\n")
        self._write({"start": plan, "interrupted": interrupted or bool(others)})

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def exists(self) -> bool:
        """Whether the journal is still there; who finishes an extraction removes all of them."""
        return self._path.exists()

    def add(self, scan: str, outcome: Outcome) -> None:
        """Note a finished scan by its name."""
        self._write({"scan": scan, "pixels": self._pixels, **dataclasses.asdict(outcome)})

    def end(self) -> None:
        """Note that the part is done."""
        self._write({"end": self._plan})
        os.fsync(self._file.fileno())

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _lock(file: io.TextIOBase, out: Path) -> None:
    """Lock a journal until it is closed, where the file system can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out {out}: expected a folder in which no other extraction is at work, found one. Wait for "
                        "it to end, or name another folder.") from None
    except OSError:
        pass


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


def lines_of(path: Path) -> Iterator[dict]:
    """The lines of a journal that are whole."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(record := json.loads(line), dict):
                    yield record
