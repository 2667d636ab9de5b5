"""Pictures that are decoded one by one -> one array of all of them, one copy on each machine.

A process alone decodes into an array of its own. Several on one machine (torchrun's LOCAL_WORLD_SIZE) make one file
in memory, /dev/shm, which all map: each decodes its share into it, and then all read the whole. Where /dev/shm is too
small (a container's has 64 MB) the file lies on the disk, and likewise where the pictures are larger than the free
memory: mapped pages are shared too, and the kernel keeps those in memory that it has room for.

Nothing stays behind. The file has a name only until the processes of the machine have opened it, which is before the
first picture is decoded; without a name it goes with the last of them, however they end. Whoever makes it locks it
(flock), and the kernel lifts the lock at death: so a file that has a name and no lock was left by a process that was
killed in these milliseconds, and the next one to make such a file removes it.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqvae2.common import distributed, machine
from vqvae2.common.errors import UserError

PREFIX = "vqvae2-pixels-"
SHARED_MEMORY = Path("/dev/shm")
LARGEST_SHARE_OF_MEMORY = 0.7
"""Of the free memory, for the pictures; what is left is for the network and the batches."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where a container's or a Slurm job's limits are found."""


class Format(NamedTuple):
    """How one picture lies in memory."""

    channels: int
    height: int
    width: int
    dtype: str
    """uint8 or uint16."""

    def holds(self, other: "Format") -> bool:
        """Return whether a picture of `other` format becomes one of this by repeating channels and widening bits."""
        return (self[1:3] == other[1:3] and other.channels in (1, self.channels)
                and other.dtype in ("uint8", self.dtype))


class BrokenPictures(UserError):
    """Some pictures cannot be read; `errors` has of each, by its number, the error's text and a few words of why."""

    def __init__(self, errors: dict[int, tuple[str, str]]) -> None:
        super().__init__(errors[min(errors)][0])
        self.errors = errors


@dataclass(frozen=True)
class _Store:
    """Where the pictures of this process go."""

    file: FileIO | None
    """The machine's, or None: an array of this process's own."""
    share: range
    """Numbers of the pictures that this process decodes."""
    note: str
    """What is worth saying about the place."""


def decode(count: int, read: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
    """Return pictures 0 … count - 1 as one array `[count, channels, height, width]`, and what to say about it.

    Args:
        count: number of pictures; the same on all ranks.
        read: returns picture i, `[channels, height, width]` of uint8 or uint16; raises UserError. Called in threads.
    The array has as many channels as the picture with most, and 16 bits if one has (255 and 65535 both are white).
    It is read-only where processes share it. What is said is "" where all is as it should be. Every rank must call
    this; each gets what one process would.
    Raises, the same on all ranks: BrokenPictures, once all were tried, if some cannot be read; UserError if heights or
    widths differ.
    """
    if count == 0:
        return np.zeros((0, 1, 1, 1), np.uint8), ""
    found = distributed.gather_objects(distributed.together(partial(_first_format, count, read)))
    formats = {one for one, _ in found}
    if None in formats:
        raise BrokenPictures({i: error for _, errors in found for i, error in errors.items()})
    while True:  # once; a second time if the first picture has fewer channels or bits than another
        wanted = _common(formats)
        with _store(count, wanted) as store:
            pixels = _array(store.file, count, wanted, writable=True)
            found = distributed.gather_objects(
                distributed.together(partial(_fill, pixels, store.share, read, wanted)))
            if errors := {i: error for _, broken in found for i, error in broken.items()}:
                raise BrokenPictures(errors)
            formats = {wanted}.union(*(met for met, _ in found))
            if _common(formats) == wanted:
                return (pixels if store.file is None else _array(store.file, count, wanted, writable=False)), store.note


def memory_available() -> int:
    """Return how many bytes this process may still take: of the machine's, or of its control group's if fewer."""
    found = [int(line.split()[1]) * 1024 for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable:")]
    whole = found or [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    return min([*whole, *_left_in_control_groups()])


def room_in(folder: Path) -> int:
    """Return how many bytes can still be written to a folder, 0 where there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def disk_folder() -> Path:
    """Return where files that are too large for memory go: TMPDIR, or /var/tmp, which unlike /tmp is a disk."""
    return Path(os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir()))


def remove_left_overs(folder: Path) -> None:
    """Remove the files of killed processes from a folder; one that is in use is locked, and stays."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked, another user's, or just gone
            number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(number), os.lstat(path)):
                    path.unlink()
            finally:
                os.close(number)


def _format_of(picture: np.ndarray) -> Format:
    return Format(*picture.shape, picture.dtype.name)


def _common(formats: set[Format]) -> Format:
    """Return the format that holds all. Raises: UserError if heights or widths differ."""
    shapes = sorted({one[1:3] for one in formats})
    if len(shapes) > 1:
        found = ", ".join(f"{height} by {width}" for height, width in shapes[:4])
        raise UserError(f"--data: expected images of one size, found {found}. Give --size to resize them.")
    return Format(max(one.channels for one in formats), *shapes[0], max((one.dtype for one in formats), key=len))


def _first_format(count: int, read: Callable[[int], np.ndarray]) -> tuple[
        Format | None, dict[int, tuple[str, str]]]:
    """Return the format of the first picture that can be read, None where none can, and the errors of those before."""
    errors = {}
    for i in range(count):
        try:
            return _format_of(read(i)), errors
        except UserError as error:
            errors[i] = _words(error)
    return None, errors


def _words(error: UserError) -> tuple[str, str]:
    # Not the error itself: its traceback would keep the array of pixels, and the file that it is mapped from.
    return str(error), getattr(error, "why", str(error))


def _fill(pixels: np.ndarray, share: range, read: Callable[[int], np.ndarray],
          wanted: Format) -> tuple[set[Format], dict[int, tuple[str, str]]]:
    """Decode a share into its places, and return the formats met, and errors by number; a picture that does not fit is
    left out."""
    errors = {}

    def one(i: int) -> Format:
        try:
            picture = read(i)
        except UserError as error:
            errors[i] = _words(error)
            return wanted
        found = _format_of(picture)
        if wanted.holds(found):
            pixels[i] = picture if found.dtype == wanted.dtype else picture.astype(np.uint16) * 257
        return found

    # More than there are cores: while one waits for the disk, another decodes.
    with ThreadPoolExecutor(max(2, min(32, machine.cores() + 4) // _of_machine()[1])) as pool:
        return set(pool.map(one, share)), errors


def _array(file: FileIO | None, count: int, form: Format, writable: bool) -> np.ndarray:
    shape = (count, *form[:3])
    if file is None:
        return np.empty(shape, form.dtype)
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    return np.frombuffer(mapped, form.dtype).reshape(shape)


def _of_machine() -> tuple[int, int]:
    """Return the rank of this machine's first process, and how many there are; itself and 1 where that is not known."""
    ranks = distributed.world_size()
    first = distributed.rank() - int(os.environ.get("LOCAL_RANK", 0))
    count = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if ranks > 1 else 1
    return (first, count) if 0 <= first <= ranks - count else (distributed.rank(), 1)


@contextmanager
def _store(count: int, form: Format) -> Iterator[_Store]:
    """Yield where this process's pictures go; the machine's first process makes the file. All ranks must enter."""
    first, processes = _of_machine()
    rank = distributed.rank()
    with ExitStack() as until_done:
        with ExitStack() as until_opened:
            file, path, note = None, None, ""
            if rank == first:
                file, path, note = _make_file(count * int(np.prod(form[:3])) * np.dtype(form.dtype).itemsize, processes,
                                              until_opened, until_done)
            identity = None if file is None else os.fstat(file.fileno())[1:3]
            offers = distributed.gather_objects((path, identity, note))
            path, identity, _ = offers[first]
            if path is not None and rank != first:
                file = _open(path, identity, until_done)
            opened = distributed.gather_objects((first, file is not None))
        notes = [note for _, _, note in offers if note]
        if opened.count((first, True)) == processes:
            place = rank - first
            share = range(count * place // processes, count * (place + 1) // processes)
        else:
            file, share = None, range(count)
        yield _Store(file, share, notes[0] if notes else "")


def _make_file(size: int, processes: int, until_opened: ExitStack, until_done: ExitStack
               ) -> tuple[FileIO | None, str | None, str]:
    """Return a file with room for `size` bytes, its path and what to say; no file where each has its own memory."""
    disk = disk_folder()
    if size > LARGEST_SHARE_OF_MEMORY * memory_available():
        places = [(disk, f"images: larger than the free memory, so they are mapped from a file in {disk}: "
                         "more memory, or a smaller --size, would be faster")]
    elif processes == 1:
        return None, None, ""
    else:
        places = [(SHARED_MEMORY, ""),
                  (disk, f"images: {SHARED_MEMORY} is too small for them, so the processes of this machine share a "
                         f"file in {disk}; in a container, --shm-size or --ipc=host would be faster")]
    for folder, note in places:
        remove_left_overs(folder)
        with suppress(OSError):
            if room_in(folder) >= size:
                file, path = _named_file(folder, size, until_opened)
                return until_done.enter_context(file), path, note
    return None, None, (f"images: neither memory nor {disk} (TMPDIR) has room for them; each process tries to hold its "
                        "own copy")


def _named_file(folder: Path, size: int, until_opened: ExitStack) -> tuple[FileIO, str]:
    """Return a locked file of `size` bytes that no other process has, whose name `until_opened` removes."""
    while True:
        number, path = tempfile.mkstemp(prefix=PREFIX, dir=folder)
        until_opened.callback(_unlink, path)
        file = open(number, "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
        fcntl.flock(number, fcntl.LOCK_EX)
        if os.fstat(number).st_nlink:  # else another process took it for a left-over before it was locked
            break
        file.close()
    try:
        # Blocks are taken now: writing into a mapping whose file system is full would end the process (SIGBUS).
        os.posix_fallocate(number, 0, size) if hasattr(os, "posix_fallocate") else os.ftruncate(number, size)
    except OSError:
        file.close()
        _unlink(path)
        raise
    return file, path


def _open(path: str, identity: tuple[int, int], until_done: ExitStack) -> FileIO | None:
    """Return the file that another process of this machine has made, None where it is not to be seen from here."""
    with suppress(OSError):
        file = open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b", buffering=0)  # noqa: SIM115
        until_done.enter_context(file)
        return file if os.fstat(file.fileno())[1:3] == identity else None
    return None


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _left_in_control_groups() -> Iterator[int]:
    """Yield what each control group around this process, version 1 or 2, has left of its memory."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CONTROL_GROUPS / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            numbers = [_lines(folder / name)[:1] for name in names]
            if all(one and one[0].isdigit() for one in numbers):
                limit, used = (int(one[0]) for one in numbers)
                # Pages of files that nobody has used lately count as used, but are given up when needed.
                idle = sum(int(one.split()[1]) for one in _lines(folder / "memory.stat")
                           if one.startswith("inactive_file "))
                yield max(limit - used + idle, 0)
            if folder == root:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
