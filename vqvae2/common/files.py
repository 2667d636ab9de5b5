"""Values -> files that are either complete or absent; tables and JSON; a name -> the regular file that has it.

A file is written under a temporary name beside its own, synced and renamed: if the process is killed, the last good
file remains.
"""

import csv
import errno
import hashlib
import io
import json
import os
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vqvae2.common.errors import UserError, expect

LEFT_OVERS = ".*.tmp*"
"""Pattern of the names of files that a killed process was just writing."""

KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
"""What may have a name, besides devices."""


def write_atomically(path: Path, content: bytes | memoryview | Callable[[Path], object], keep: Path | None = None,
                     *, synced: bool = True) -> None:
    """Write a file, and its folders: after this the file is either complete or unchanged.

    Args:
        content: the bytes of the file, or a function that writes them to the path given as its argument; that path has
            the same suffix as `path`.
        keep: if given, the previous file at `path` is renamed to this.
        synced: whether to wait until the disk has the file. Without it a power cut may leave a torn file.
    Raises: UserError if the file cannot be written.
    """
    try:
        replace_whole(path, content, keep, synced=synced)
    except OSError as error:
        raise UserError(f"{path}: expected to write this file, found {error.strerror or error}. "
                        "Free some space or choose another folder; what was there before is kept.") from error


def replace_whole(path: Path, content: bytes | memoryview | Callable[[Path], object], keep: Path | None = None,
                  *, synced: bool = True) -> None:
    """Do the same as `write_atomically`, but raise OSError, for a caller that writes its own error message.

    If the process is killed, at most one more file remains beside `path`; the pattern LEFT_OVERS finds it.
    """
    # The name is random, so that two processes never write the same file, and short, since the name of `path` may be
    # long.
    temporary = path.with_name(f".{uuid.uuid4().hex[:16]}.tmp{path.suffix}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        content(temporary) if callable(content) else temporary.write_bytes(content)
        if synced:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # where the folder could not be made, there is nothing to remove
            temporary.unlink()
        raise


def open_regular(path: Path, *, follow_link: bool = True) -> BinaryIO:
    """Return a regular file, opened for reading.

    Nothing else is opened: a named pipe that nobody writes to would be waited for, and a device may react. What takes
    the file's place in the same moment is not waited for either.

    Args:
        follow_link: whether `path` may be a link; without it, opening a link fails with errno.ELOOP.
    Raises: OSError, whose text says what has this name, if it is not a regular file.
    """
    _check_regular(path, path.stat())
    flags = getattr(os, "O_NONBLOCK", 0) | (0 if follow_link else getattr(os, "O_NOFOLLOW", 0))
    file = open(path, "rb", opener=lambda name, own: os.open(name, own | flags))  # noqa: SIM115
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"Not a regular file but {kind_of(path)}")


def kind_of(path: Path) -> str:
    """Return what has this name: "a file", "a folder", "a named pipe", "nothing", … or why that cannot be told."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to a file that is not there" if path.is_symlink() else "nothing"
    except (OSError, ValueError) as error:
        return in_brief(error).lower()
    return KINDS.get(stat.S_IFMT(mode), "a device")


def read_at_most(path: Path, most: int, *, follow_link: bool = True) -> bytes:
    """Return the bytes of a file that has no more than `most`.

    Args and Raises: as for `open_regular`; OSError also if the file has more.
    """
    with open_regular(path, follow_link=follow_link) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, most) + 1)  # not of `most`, for which Python would take the memory at once
        if size < len(content) <= most:  # it is growing, or its file system tells no sizes
            content += file.read(most + 1 - len(content))
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"{max(size, len(content)):,} bytes, where {most:,} are the most")
    return content


def sha256_of_file(path: Path, digest: "hashlib._Hash | None" = None) -> "hashlib._Hash":
    """Return the SHA-256 of a file's bytes, added to `digest` where there is one. Raises: OSError, as `open_regular`.
    """
    digest = digest or hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def check_folder(folder: Path, flag: str) -> None:
    """Raise UserError where a file stands in the way of a folder that will be written to, before any work is done."""
    for path in (folder, *folder.parents):
        expect(not path.is_file(), f"{flag} {folder}", "a folder or nothing", f"a file {path}", "Choose another name.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; a file name's bytes that are not UTF-8 become such as \\udcff."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, values: object) -> None:
    """Write JSON values, indented, atomically; NaN and infinity, which JSON lacks, are a ValueError."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV, atomically; columns are in order of first appearance, and a cell is empty where a row lacks
    it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, such as a run's log.csv; none where there is no file.

    Raises: UserError if the file is not a CSV file.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a table that a training has written, found {in_brief(error)}. "
                        "Delete it, or train again.") from None


def in_brief(error: Exception) -> str:
    """Return the message of an error, for use inside of a sentence: without the number and the file of an OSError, and
    without a full stop, in at most 120 characters."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    is_name = isinstance(error, KeyError) and error.args
    text = f"no {error.args[0]}" if is_name else getattr(error, "strerror", None) or str(error)
    return shortened(" ".join(text.split()).rstrip(".") or type(error).__name__)


def shortened(text: str) -> str:
    """Return at most 120 characters of a text."""
    return text if len(text) < 120 else text[:117] + "…"
