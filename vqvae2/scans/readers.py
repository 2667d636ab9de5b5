"""File -> what its header says and its voxels as they are stored, by a table of readers that anybody can extend.

READERS has one row a format: the end of a file's name in lower case, and the function that reads such a file. A scan is
found if its name ends so, and everything that is not about its format is done for all of them by `volumes.read_volume`:
RAS order, background, numbers that are not finite, check sums. A new format is one module that imports from headers.py
alone, and one row here.

The first bytes of a file tell whether it is gzip, not its name. The package isal [1], where it is installed, inflates
several times faster than zlib; the bytes are the same. A file is read to its end, where
gzip's check sum stands.

[1] Intel Intelligent Storage Acceleration Library, https://github.com/intel/isa-l.
"""

import contextlib
import errno
import gzip
import io
import math
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vqvae2.scans.headers import BEGINNING_BYTES, Header, UnusableScan, check_shape, parse_header

try:
    from isal.igzip import IGzipFile as GzipFile
    from isal.igzip_lib import IsalError as InflateError
    from isal.isal_zlib import crc32
except ImportError:
    from gzip import GzipFile
    InflateError, crc32 = zlib.error, zlib.crc32

CHUNK = 1 << 18
"""Bytes inflated at a time: few enough to stay in the processor's cache until they are copied."""
MOST_FROM_A_BYTE = 1032
"""The most bytes that gzip makes of one compressed byte (https://zlib.net/zlib_tech.html)."""
REFERENCES_IF_UNUSED = 2
"""The references to memory that nobody else uses: this module's, and that of sys.getrefcount itself."""


def read_image(path: Path, number: int | None) -> tuple[Header, np.ndarray]:
    """Return what a NIfTI, Analyze or MGH file holds, plain or gzip, or a pair of .hdr and .img by either name.

    Raises: UnusableScan if it is damaged, no image, or not one volume of real numbers.
    """
    files = files_of(path)
    with opened(files[0], path) as (stream, _):
        header = parse_header(path, stream.read(BEGINNING_BYTES))
    check_shape(path.name, header, number)
    size = math.prod(header.shape[:3]) * header.number_type.itemsize
    start = header.voxels_at + (size * number if header.is_series else 0)
    with opened(files[-1], path) as (stream, most):
        memory = _memory(min(size, most))  # a damaged header may claim terabytes
        held, filled = min(stream.seek(start), most), 0
        while count := stream.readinto(memory[filled:filled + CHUNK]):
            filled += count
        while stream.read(CHUNK):  # to the check sum
            pass
    if filled < size:
        raise UnusableScan(path.name, f"{start + size} bytes for its {' x '.join(map(str, header.shape))} voxels",
                           held + filled, "It is cut short, or its header is wrong: copy or download it again.")
    return header, memory.view(header.number_type).reshape(header.shape[:3], order="F")


Reader = Callable[[Path, int | None], tuple[Header, np.ndarray]]
"""A function that reads one format.

It is called with the path of a file, and with the number, from 0, of the volume that --volume asks for, or None. It
returns the header, whose `affines` or `sizes` say in which unit and order the indices run (see `headers.Header`), and
the voxels [i, j, k] in the file's own order and number type, unscaled; of a series the volume that is asked for, which
`headers.check_shape` refuses where it cannot be told. What cannot be used is an `UnusableScan`; an OSError may pass.
"""
READERS: dict[str, Reader] = {".nii.gz": read_image, ".nii": read_image, ".hdr": read_image, ".img": read_image,
                              ".mgz": read_image, ".mgh": read_image}
"""The reader of each format, by the end of its files' names in lower case."""


def suffix_of(name: str) -> str | None:
    """Return the end of a file's name that is in READERS, in lower case; None if its format is not known."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), None)


_spare = np.empty(0, np.uint8)


def _memory(size: int) -> np.ndarray:
    """Return `size` bytes, those of the last scan if nobody looks at these any more: fresh ones cost a quarter of the
    time in which a scan is inflated, for the system has to find and clear them."""
    global _spare
    if _spare.size < size or sys.getrefcount(_spare) > REFERENCES_IF_UNUSED:
        _spare = np.empty(size, np.uint8)
    return _spare[:size]


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that a scan consists of: itself, or the header and the voxels of a pair .hdr and .img."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return (path,)

    def beside(suffix: str) -> Path:
        names = path.with_suffix(suffix), path.with_suffix(suffix.upper())
        return names[1] if names[1].exists() and not names[0].exists() else names[0]
    return (path, beside(".img")) if path.suffix.lower() == ".hdr" else (beside(".hdr"), path)


@contextlib.contextmanager
def opened(part: Path, scan: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open `part`, the scan or a file of its pair; yield its inflated bytes, and how many there can be at most."""
    with errors_of(part, scan), open(part, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(2)[:2] == b"\x1f\x8b":
            inflating = GzipFile(fileobj=file, mode="rb")
            # GzipFile has no readinto of its own: reading through it would copy every byte once more.
            yield inflating._buffer, size * MOST_FROM_A_BYTE
        else:
            yield file, size


@contextlib.contextmanager
def errors_of(part: Path, scan: Path) -> Iterator[None]:
    """Turn what can go wrong into reasons while `part`, the scan or a file of its pair, is opened and read."""
    again = "Copy or download it again."
    try:
        if not stat.S_ISREG(os.stat(part).st_mode):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "Not a regular file")
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, InflateError):
        raise UnusableScan(scan.name, "a whole gzip file", "one that is cut short or damaged", again) from None
    except FileNotFoundError:
        found = "a link to a file that is not there" if part.is_symlink() else f"no file {part.name}"
        raise UnusableScan(scan.name, "a file" if part == scan else "a pair .hdr and .img", found,
                           "Copy or download it (datalad get, for a DataLad folder).") from None
    except OSError as error:
        raise UnusableScan(scan.name, "a file that can be read", (error.strerror or str(error)).lower(),
                           "See its permissions and the disk.") from None
