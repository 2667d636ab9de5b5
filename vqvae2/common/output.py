"""Text -> the terminal, a pipe or a log, where it can be written: a line that is lost ends no work.

A disk under a log may be full, a pipe or a terminal may be gone, or a stream was closed before the command began. What
a command makes is in its files, and its exit status says how it ended.
"""

import atexit
import errno
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO


class Output:
    """A text stream that never raises. What cannot be written is lost; the next text is tried again.

    Attributes:
        lost: the last error, if there was one.
        is_result: whether the command is there for nothing but this text.
    """

    def __init__(self, stream: TextIO | None):
        self.is_result = False
        self.lost: Exception | None = None
        if stream is None:  # closed before Python started
            self.lost = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
        if isinstance(self.stream, io.TextIOWrapper):  # a name that a terminal cannot write is escaped
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text`, if that is possible, and return its length."""
        try:
            self.stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream has been closed
            self.lost = error
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write several texts."""
        self.write("".join(texts))

    def flush(self) -> None:
        """Write what is kept back, if that is possible."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.lost = error

    def end(self) -> None:
        """Let the interpreter, which writes what is kept back as the last thing it does, find a place for it."""
        with suppress(OSError, ValueError):
            try:
                self.stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def guard() -> None:
    """Put an `Output` in place of stdout and stderr. Call this first in a process, before files are opened."""
    for number in (0, 1, 2):  # a file that took the number of a closed stream would receive its text
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        guarded = Output(stream.stream if isinstance(stream, Output) else stream)
        setattr(sys, name, guarded)
        atexit.register(guarded.end)


def is_result() -> None:
    """Say that the command is there for nothing but the text on stdout: where that is lost, the command has failed."""
    if isinstance(sys.stdout, Output):
        sys.stdout.is_result = True


def lost_result() -> Exception | None:
    """Return why text was lost that was all that the command gave; a reader that closes its pipe has seen enough."""
    sys.stdout.flush()
    given = sys.stdout
    lost = given.lost if isinstance(given, Output) and given.is_result else None
    return None if isinstance(lost, BrokenPipeError) else lost
