"""File, plain or gzip -> its bytes, inflated if need be and proved whole.

gzip is told by a file's first bytes, not by its name. It is inflated by ISA-L [1] where the package
isal is installed, several times faster than zlib, and by zlib where it is not; the bytes are the same.
Reading on to the end compares gzip's check sum, which most readers of scans never do.

[1] Intel Intelligent Storage Acceleration Library, https://github.com/intel/isa-l.
"""

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

try:
    from isal.igzip import IGzipFile as GzipFile
    from isal.igzip_lib import IsalError as InflateError
    from isal.isal_zlib import crc32
except ImportError:
    from gzip import GzipFile
    from zlib import crc32
    from zlib import error as InflateError

__all__ = ["Damaged", "Source", "crc32"]
GZIP = b"\x1f\x8b"
CHUNK = 1 << 18
"""Bytes inflated at a time: few enough to stay in the processor's cache until they are copied."""
MOST_FROM_A_BYTE = 1032
"""No deflate stream grows by more (https://zlib.net/zlib_tech.html)."""


class Damaged(Exception):
    """Compressed data that is cut short, or that its check sum contradicts."""


class Source(contextlib.AbstractContextManager):
    """One file, read from its beginning to its end.

    Raises: OSError if it cannot be opened or read; `Damaged` from what reads.
    """

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115, closed by __exit__
        self.size = os.fstat(self._file.fileno()).st_size
        """Bytes of the file as it lies on the disk."""
        self.compressed = self._file.peek(2)[:2] == GZIP
        self._content = self._file.read() if self.compressed else b""
        self._inflating = _inflating(self._content) if self.compressed else None
        # GzipFile has no readinto of its own: reading through it would copy every byte once more.
        self._stream = getattr(self._inflating, "_buffer", self._inflating) or self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def holds(self, size: int) -> int:
        """Return how many bytes there are in all, or `size` if that many can be; none of them is kept."""
        if not self.compressed:
            return min(size, self.size)
        # gzip's last four bytes are the size of its last member, which mostly is the only one.
        if size <= min(int.from_bytes(self._content[-4:], "little"), self.size * MOST_FROM_A_BYTE):
            return size
        with _told_as_damage(self.compressed):
            return min(size, sum(_chunks(_inflating(self._content))))

    def fill(self, buffer: memoryview) -> int:
        """Read into `buffer` until it is full or the file ends; return how many bytes came."""
        filled = 0
        with _told_as_damage(self.compressed):
            while filled < len(buffer) and (count := self._stream.readinto(buffer[filled:filled + CHUNK])):
                filled += count
        return filled

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or what is left of them."""
        buffer = bytearray(size)
        return bytes(buffer[: self.fill(memoryview(buffer))])

    def skip(self, size: int | None = None) -> None:
        """Read and forget `size` bytes, or all that are left."""
        buffer = memoryview(bytearray(CHUNK))
        left = self.size * MOST_FROM_A_BYTE if size is None else size
        while left > 0 and (count := self.fill(buffer[:left])):
            left -= count


def _inflating(content: bytes) -> GzipFile:
    return GzipFile(fileobj=io.BytesIO(content), mode="rb")


def _chunks(stream: GzipFile) -> Iterator[int]:
    buffer = bytearray(CHUNK)
    while count := stream.readinto(buffer):
        yield count


@contextlib.contextmanager
def _told_as_damage(compressed: bool) -> Iterator[None]:
    """Make one error of the many that the two libraries raise."""
    try:
        yield
    except (EOFError, OSError, zlib.error, InflateError):
        if not compressed:
            raise
        raise Damaged("gzip data that is cut short or damaged") from None
