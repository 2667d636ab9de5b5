"""Work that is counted -> a bar on stderr that can be planned with, and the same in a file for whoever started us.

Every bar has a total, so that it can say how long the rest takes. A command that was started by another, such as
`vqvae2 run`, also writes how far it is to the file that VQVAE2_PROGRESS_FILE names, about once a second.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

PROGRESS_FILE = "VQVAE2_PROGRESS_FILE"
SECONDS_BETWEEN_NOTES = 1.0


_part: list[tuple[int, int]] = []
"""The part of the command's work that the bars now are of; nothing where a bar is all of it."""


@contextmanager
def part(number: int, parts: int) -> Iterator[None]:
    """Say that the bars of the `with` statement are of part `number`, counted from 0, of so many."""
    _part.append((number, parts))
    try:
        yield
    finally:
        _part.pop()


class Bar(tqdm):
    """A progress bar with a total, which leaves no line behind.

    Args:
        of_all: (before, all): this bar's work is a part of a longer work of `all` units, of which `before` are done
            when this bar is at 0. An epoch is such a part of a training. What is noted in the file is of the whole.
        more: as for tqdm.
    """

    def __init__(self, iterable: Iterable | None = None, *, of_all: tuple[int, int] | None = None, **more: object):
        self.of_all, self.noted = of_all, 0.0
        if os.environ.get(PROGRESS_FILE):  # whoever reads the file shows it; a log would be full of bars
            more["file"] = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the bar)
        super().__init__(iterable, **{"leave": False, "dynamic_ncols": True} | more)
        if self.total is None:
            raise AssertionError(f"the bar {self.desc} has no total")
        self._note()

    def update(self, n: float = 1) -> bool | None:
        """Count `n` more units."""
        shown = super().update(n)
        self._note()
        return shown

    def say(self, what: str) -> None:
        """Say at once what the work is now."""
        self.set_description(what)
        self.noted = 0.0
        self._note()

    def _note(self) -> None:
        path, now = os.environ.get(PROGRESS_FILE), time.monotonic()
        if not path or self.disable or now - self.noted < SECONDS_BETWEEN_NOTES:
            return
        self.noted = now
        before, whole = self.of_all or (0, self.total)
        share = (before + self.n) / whole if whole else 1.0
        if _part:
            number, parts = _part[-1]
            share = (number + share) / parts
        with suppress(OSError):  # a full disk must not end the work: the note is for show
            temporary = Path(f"{path}.part")
            temporary.write_text(json.dumps({"what": self.desc.rstrip(": "), "share": min(share, 1.0),
                                             "is_all": bool(self.of_all or _part)}), encoding="utf-8")
            temporary.replace(path)


def read_note(path: Path) -> dict:
    """Return what a command has written of its progress: {"what", "share" 0…1, "is_all"}; {} where there is nothing.

    `is_all` says whether the share is one of all the command's work, and not of one of its parts.
    """
    with suppress(OSError, ValueError):
        note = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(note, dict) and isinstance(note.get("share"), (int, float)):
            return note
    return {}


def in_words(seconds: float) -> str:
    """Return a time to wait: `40 s`, `12 min`, `3.1 h`, `2.5 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{int(size > 60 and seconds < 9.95 * size)}f} {unit}"
    return f"{seconds:.0f} s"
