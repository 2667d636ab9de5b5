"""Pictures that are decoded one by one -> one array of all of them, one copy on each machine.

A process alone decodes into an array of its own. Several processes on one machine (torchrun's LOCAL_WORLD_SIZE) share
a file in memory, /dev/shm: each decodes its share into the file, and then all read the whole. The file lies in TMPDIR,
or /var/tmp, where /dev/shm is too small (a container's has 64 MB) or the pictures are larger than the free memory; the
kernel then keeps those of its pages in memory for which there is room, and `read_ahead` lets it read pictures before
they are needed.

Nothing stays behind. The file has a name only until the processes of the machine have opened it, which is before the
first picture is decoded into it; without a name it goes with the last of them, however they end.
"""

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np

from vqvae2.common import distributed, machine
from vqvae2.common.errors import UserError, expect
from vqvae2.common.memory import memory_available

PREFIX = "vqvae2-pixels-"
SHARED_MEMORY = Path("/dev/shm")
LARGEST_SHARE_OF_MEMORY = 0.7
"""The share of the free memory that pictures may take; the network and the batches need the rest."""
Format = tuple[int, int, int, int]  # how one picture lies in memory: channels, height, width, bytes of a value (1 or 2)
Why = tuple[str, str]  # why a picture cannot be read: the error's text, and a few words


def decode(count: int, read: Callable[[int], np.ndarray]) -> tuple[np.ndarray, dict[int, Why], str]:
    """Return pictures 0 … count - 1 as one array `[count, channels, height, width]`; why pictures cannot be read, by
    their numbers, in which case the array is not complete; and what to tell the user about the array.

    Args:
        count: number of pictures; the same on all ranks.
        read: returns picture i, `[channels, height, width]` of uint8 or uint16; raises UserError. Called in threads.
    The array has as many channels as the picture with most, and 16 bits if one has (255 and 65535 both are white).
    It is read-only where it lies in a file. The user is told "" where all is as it should be. Every rank must call
    this; each gets what one process would.
    Raises, the same on all ranks: UserError if heights or widths differ, or no place has room.
    """
    if count == 0:
        return np.zeros((0, 1, 1, 1), np.uint8), {}, ""
    local_rank, processes = ((int(os.environ.get(name, alone)) if distributed.world_size() > 1 else alone)
                             for name, alone in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    share = range(count * local_rank // processes, count * (local_rank + 1) // processes)
    tried = (_try_to_read(read, i) for i in range(count))
    first = next(((*picture.shape, picture.itemsize) for picture in tried if isinstance(picture, np.ndarray)), None)
    # Where no picture can be read the format does not matter: all are tried, and named.
    formats = set(distributed.gather_objects(first)) - {None} or {(1, 1, 1, 1)}
    while True:  # once; a second time if the first picture has fewer channels or bits than another
        wanted = _common(formats)
        shape, kind = (count, *wanted[:3]), np.dtype(f"u{wanted[3]}")
        file, note = _open_file(count * int(np.prod(wanted)), local_rank, processes)
        with file or nullcontext():
            pixels = np.memmap(file, kind, "r+", 0, shape) if file else np.empty(shape, kind)
            found = distributed.gather_objects(distributed.together(partial(_fill, pixels, share, read)))
            errors = {i: why for _, broken in found for i, why in broken.items()}
            formats = {wanted}.union(*(met for met, _ in found))
            if errors or _common(formats) == wanted:
                return np.asarray(np.memmap(file, kind, "r", 0, shape)) if file else pixels, errors, note


def read_ahead(pixels: np.ndarray, items: np.ndarray) -> None:
    """Let the system read pictures `items` of an array of `decode` into memory, all at the same time; do not wait.

    What lies in memory costs a microsecond a picture. Without this each page of a picture that is not in memory would
    be waited for by itself, and the kernel would read its neighbours too, which a shuffled order has no use for.
    """
    owner = pixels
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    start = pixels.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    for first in (start + items % len(pixels) * pixels[:1].nbytes).tolist():
        page = first - first % mmap.PAGESIZE
        with suppress(OSError):  # the system may refuse: it is only told what will be needed
            owner.madvise(mmap.MADV_WILLNEED, page, first - page + pixels[:1].nbytes)


def _common(formats: set[Format]) -> Format:
    """Return the format that holds pictures of all `formats`. Raises: UserError if heights or widths differ."""
    shapes = sorted({form[1:3] for form in formats})
    expect(len(shapes) == 1, "--data", "images of one size", ", ".join(f"{height} by {width}" for height, width
                                                                      in shapes[:4]), "Give --size to resize them.")
    return tuple(np.max(list(formats), axis=0).tolist())


def _try_to_read(read: Callable[[int], np.ndarray], i: int) -> np.ndarray | Why:
    try:
        return read(i)
    except UserError as error:  # not kept: its traceback would keep the array of pixels, and the file
        return str(error), getattr(error, "why", str(error))


def _fill(pixels: np.ndarray, share: range, read: Callable[[int], np.ndarray]) -> tuple[set[Format], dict[int, Why]]:
    """Decode a share into its places; return the formats met, and why pictures cannot be read, by number."""
    formats: set[Format] = set()
    broken: dict[int, Why] = {}

    def fill_one(i: int) -> None:
        picture = _try_to_read(read, i)
        if not isinstance(picture, np.ndarray):
            broken[i] = picture
            return
        formats.add((*picture.shape, picture.itemsize))
        # What does not fit in size, or loses bits here, has another format: `decode` refuses it or starts anew.
        with suppress(ValueError):
            pixels[i] = picture if picture.dtype == pixels.dtype else picture.astype(np.uint16) * 257

    # More than there are cores: while one waits for the disk, another decodes.
    _in_threads(max(2, min(32, machine.cores() + 4) * len(share) // len(pixels)), fill_one, share)
    return formats, broken


def _in_threads(number: int, work: Callable[[int], object], items: Iterable[int]) -> None:
    """Call `work` with each of the items, in `number` threads; an exception of one is raised here.

    A signal that stops the process ends the waiting at once. The threads take no further item then, and the process
    does not wait for what they are at, as it does for those of concurrent.futures.
    """
    left, failures = iter(items), []

    def do_what_is_left() -> None:
        try:
            for item in left:
                if failures:
                    return
                work(item)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=do_what_is_left, daemon=True) for _ in range(number)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as stop:
        failures.append(stop)
        raise
    if failures:
        raise failures[0]


def _open_file(size: int, local_rank: int, processes: int) -> tuple[FileIO | None, str]:
    """Return the file of this machine's processes, None for a process that needs none, and what to say about it.

    The first process of each machine makes the file. All ranks must call this.
    """
    with ExitStack() as until_opened:
        offer = distributed.together(lambda: _make_file(size, processes, until_opened) if local_rank == 0 else ("", ""))
        offers = distributed.gather_objects(offer)
        path = offers[distributed.rank() - local_rank][0]
        file = distributed.together(lambda: open(path, "r+b", buffering=0) if path else None)  # noqa: SIM115
    return file, max(note for _, note in offers)


def _make_file(size: int, processes: int, until_opened: ExitStack) -> tuple[str, str]:
    """Return the path of a new file of `size` bytes, which `until_opened` removes, and what to say about its place.

    The path is "" for a process alone whose pictures fit into the free memory.
    """
    disk = os.environ.get("TMPDIR") or "/var/tmp"  # unlike /tmp a disk
    fits = size <= LARGEST_SHARE_OF_MEMORY * memory_available()
    if fits and processes == 1:
        return "", ""
    places = {
        SHARED_MEMORY: "", disk: f"images: {SHARED_MEMORY} is too small for them, so the processes of this machine "
        f"share a file in {disk}; in a container, --shm-size or --ipc=host would be faster"} if fits else {
        disk: f"images: larger than the free memory, so they are mapped from a file in {disk}: more memory, or a "
        "smaller --size, would be faster"}
    for folder, note in places.items():
        try:
            file = until_opened.enter_context(tempfile.NamedTemporaryFile(prefix=PREFIX, dir=folder))  # noqa: SIM115
            # Blocks are taken now: writing into a mapping whose file system is full would end the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            return file.name, note
        except OSError as error:
            why = error.strerror or error
    raise UserError(f"images: expected room for {size:,} bytes in {' or '.join(map(str, places))}, found "
                    f"{why}. Let TMPDIR name a folder with room, or give a smaller --size.")
