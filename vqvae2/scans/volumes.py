"""Scan -> RAS volume with voxel size in mm, by a table of readers of file formats that anybody can extend.

RAS: the first index grows towards the subject's Right, the second towards Anterior, the third
towards Superior, whatever the order in the file. Axes are permuted and flipped (closest canonical),
never interpolated, so a voxel keeps its value. Voxels stay in the file's number type, unscaled, and
are a view of what was read: a copy of a scan in float64 would be 120 MB.

READERS has one row a format: the end of a file's name in lower case, and the function that reads such a file. A scan is
found if its name ends so; a series of DICOM is its whole folder (dicom.py). Everything that is not about its format is
done for all of them by `read_volume`: RAS order, background, numbers that are not finite, check sums. A new format is
one module that imports from headers.py alone, and one row here.

The first bytes of a file tell whether it is gzip, not its name. The package isal [1], where it is installed, inflates
several times faster than zlib; the bytes are the same. A file is read to its end, where gzip's check sum stands, but
more than a few megabytes behind the voxels are refused. Memory is asked for by the header, before it is taken.

[1] Intel Intelligent Storage Acceleration Library, https://github.com/intel/isa-l.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt2axcodes

from vqvae2.common.files import open_regular, sha256_of_file
from vqvae2.scans import dicom
from vqvae2.scans.headers import (
    BEGINNING_BYTES,
    Header,
    UnusableScan,
    check_shape,
    expect_bytes,
    expect_room,
    expect_usable,
    find_orientation,
    parse_header,
)

try:
    from isal.igzip import IGzipFile as GzipFile
    from isal.igzip_lib import IsalError as InflateError
    from isal.isal_zlib import crc32
except ImportError:
    from gzip import GzipFile
    InflateError, crc32 = zlib.error, zlib.crc32

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""
CHUNK = 1 << 18
"""Bytes inflated at a time: few enough to stay in the processor's cache until they are copied."""
MOST_FROM_A_BYTE = 1032
"""The most bytes that gzip makes of one compressed byte (https://zlib.net/zlib_tech.html)."""
MOST_BEHIND = 1 << 24
"""Bytes that may follow the voxels, such as the tags of an MGH file; they are skipped."""
REFERENCES_IF_UNUSED = 2
"""The references to memory that nobody else uses: this module's, and that of sys.getrefcount itself."""
LONGEST_MM = (1, 1000)
"""Bounds of the longest side of a volume that may hold a head; beyond them the unit is wrong."""
LEAST_BACKGROUND = 0.05
"""Share of a volume; less may be the same number in all corners by chance."""


@dataclass(frozen=True)
class Volume:
    """One scan in RAS order, and the facts about its file that messages and the manifest tell."""

    voxels: np.ndarray
    """[right, anterior, superior], as stored, in the file's number type; `scaled` gives what they mean."""
    voxel_size_mm: tuple[float, float, float]
    name: str = ""
    slope: float = 1.0
    inter: float = 0.0
    background: float | None = 0.0
    """The stored number that is drawn as 0: it stands for 0, or all corners have it. None where there is none."""
    not_finite: np.ndarray | None = None
    """bool, like `voxels`: those that were not finite and are background now; None where all were finite."""
    number: int | None = None
    """The volume's number in a series, from 0; None for a file of one volume."""
    orientation: str = "RAS"
    """The directions that the file's own three indices grow towards, such as LAS."""
    orientation_from: str = "sform"
    """sform, qform, mgh or orient (Analyze's byte) in the header; layout or assumed where it says nothing."""
    affine: np.ndarray | None = None
    """[4, 4]: from indices of `voxels` to RAS positions in mm, as the header says; None where it says nothing."""
    geometry: str = ""
    """What other programs may take otherwise: sform and qform that differ, or sheared axes; mostly empty."""
    sha256: str = ""
    """The hash of the file as it lies on the disk; for a pair, of the header and then the voxels."""
    fingerprint: str = ""
    """Type, shape and CRC-32 of the voxels as stored; scans that differ in it are different."""

    def is_not_background(self, stored: np.ndarray) -> np.ndarray:
        """Return where a part of `voxels` is not background, as bool."""
        return np.ones_like(stored, bool) if self.background is None else stored != self.background

    def scaled(self, stored: np.ndarray) -> np.ndarray:
        """Return a part of `voxels` in the scan's own units as float64; background is exactly 0."""
        values = stored.astype(np.float64)
        if (self.slope, self.inter) != (1, 0) or self.background != 0:
            values = np.where(self.is_not_background(stored), values * self.slope + self.inter, 0.0)
        return values


def read_volume(path: Path, *, layout: str | None = None, assumed: str | None = None, number: int | None = None,
                trust: str = "sform") -> Volume:
    """Return the volume in a file of a known format; a pair of .hdr and .img has either name.

    Args:
        path: the file; it is read to its end.
        layout: what the file's indices grow towards by its place in a known archive (LAS, ASL, …), used
            only where the header does not say: NIfTI with sform and qform code 0, Analyze, MGH without
            goodRASFlag.
        assumed: the same, used where there is no `layout` either.
        number: which volume of a series, from 0; without it a series is refused.
        trust: which of a NIfTI header's two matrices counts where both are set, sform or qform.
    Raises: UnusableScan for a file that is missing, damaged, no image, not one 3-D volume of real numbers,
        of unknown orientation, with sheared axes, or the same value everywhere.
    Source: closest canonical orientation as in nibabel.orientations.io_orientation.
    """
    _expect_readable(path, number)
    sha256 = file_sha256(path)  # before it is read: if it changes meanwhile, the next run sees another hash
    header, stored, not_finite, fingerprint = _read(path, number)
    lies = find_orientation(path.name, header, layout, assumed, trust)
    size_mm = tuple(lies.sizes_mm[index] for index in np.argsort(lies.axes[:, 0]))
    first = stored[0, 0, 0]
    expect_usable((stored[::9, ::9, ::9] != first).any() or (stored != first).any(), path.name, "a picture",
                  f"the same value, {first:g}, in every voxel", "Leave the scan out, or copy it again.")
    voxels = apply_orientation(stored, lies.axes)
    longest = max(length * size for length, size in zip(voxels.shape, size_mm))
    expect_usable(LONGEST_MM[0] <= longest <= LONGEST_MM[1], path.name, f"a volume {LONGEST_MM[0]} to {LONGEST_MM[1]} "
                  "mm long", f"{longest:g} mm", "Repair the voxel sizes or their unit in its header.")
    return Volume(
        voxels, size_mm, path.name, header.slope, header.inter, _background(header, stored),
        None if not_finite is None else apply_orientation(not_finite, lies.axes),
        number if header.is_series else None, "".join(ornt2axcodes(lies.axes)), lies.place,
        None if lies.affine is None else lies.affine @ inv_ornt_aff(lies.axes, stored.shape), lies.geometry, sha256,
        fingerprint)


def _background(header: Header, stored: np.ndarray) -> float | None:
    """Return the stored number of the background: it stands for 0, or all eight corners have it (after z-scoring)."""
    corner, all_corners = stored[0, 0, 0], stored[np.ix_([0, -1], [0, -1], [0, -1])]
    of_corners = (all_corners == corner).all() and (stored[::9, ::9, ::9] == corner).mean() > LEAST_BACKGROUND
    return float(corner) if of_corners else header.background


def same_voxels(path: Path, other: Path, number: int | None) -> bool:
    """Return whether two scans have the same voxels in the same order, however they are packed.

    Raises: UnusableScan if one cannot be read any more.
    """
    def digest(path: Path) -> tuple[str, np.dtype, bytes]:  # so that only one of the two is in memory
        _, voxels, _, fingerprint = _read(path, number)
        return fingerprint, voxels.dtype, hashlib.sha256(_as_bytes(voxels)).digest()

    return digest(path) == digest(other)


def _expect_readable(path: Path, number: int | None) -> None:
    """Raise UnusableScan if a file's header and its size say that it cannot be read."""
    reader = reader_of(path)
    if reader is read_image:
        _claimed(path, number)
    elif reader is read_dicom:
        for part in files_of(path):
            with errors_of(part, path):
                expect_bytes(path.name, os.stat(part).st_size, f"its file {part.name}")


def file_sha256(path: Path) -> str:
    """Return `Volume.sha256` without inflating anything.

    Raises: UnusableScan if the file, or the other one of its pair, cannot be read.
    """
    digest = hashlib.sha256()
    for part in files_of(path):
        with errors_of(part, path):
            sha256_of_file(part, digest)
    return digest.hexdigest()


def reader_of(path: Path) -> "Reader":
    """Return the function that reads a file, by its name, or a folder of DICOM files."""
    suffix = suffix_of(path.name)
    return read_dicom if suffix is None and path.is_dir() else READERS.get(suffix, read_image)


def _as_bytes(voxels: np.ndarray) -> np.ndarray:
    """Return the bytes of voxels in the file's own order, without a copy."""
    return voxels.reshape(-1, order="F").view(np.uint8)


def _read(path: Path, number: int | None) -> tuple[Header, np.ndarray, np.ndarray | None, str]:
    """Return the header, the voxels in the file's own order, where they were not finite, and their fingerprint.

    What is not finite has become background; None instead of the third where all voxels are finite.
    """
    reader = reader_of(path)
    is_folder = reader is read_dicom and path.is_dir()
    with errors_of(next(iter(files_of(path)), path) if is_folder else path, path):
        header, voxels = reader(path, number)
    voxels = np.require(voxels, requirements="W")
    checksum = crc32(_as_bytes(voxels))
    not_finite = None
    if voxels.dtype.kind == "f" and not (finite := np.isfinite(voxels)).all():
        expect_usable(finite.any(), path.name, "a picture", "no finite value in any voxel",
                      "Leave the scan out, or repair it.")
        expect_room(path.name, header, not_finite=True)
        not_finite = ~finite
        voxels[not_finite] = header.background
    return header, voxels, not_finite, f"{voxels.dtype.str[1:]}-{'x'.join(map(str, voxels.shape))}-{checksum:08x}"


def read_image(path: Path, number: int | None) -> tuple[Header, np.ndarray]:
    """Return what a NIfTI, Analyze or MGH file holds, plain or gzip, or a pair of .hdr and .img by either name.

    Raises: UnusableScan if it is damaged, no image, or not one volume of real numbers.
    """
    claimed = _claimed(path, number)
    header, (start, stop) = claimed.header, claimed.voxels
    with opened(files_of(path)[-1], path) as (stream, most):
        is_possible = stop <= most  # a damaged header may claim terabytes: then what there is is only counted
        memory = _memory(stop - start if is_possible else 0)
        at, filled, behind = min(stream.seek(min(start, most + 1)), most), 0, 0
        while count := stream.readinto(memory[filled:filled + CHUNK]):
            filled += count
        while count := len(stream.read(CHUNK)):  # to the check sum
            behind += count
            claimed.expect_end(path.name, at + filled + behind)
    shape = " x ".join(map(str, header.shape))
    expect_usable(is_possible and filled == len(memory), path.name, f"{stop} bytes for its {shape} voxels",
                  at + filled + behind, "It is cut short, or its header is wrong: copy or download it again.")
    return header, memory.view(header.number_type).reshape(header.shape[:3], order="F")


@dataclass(frozen=True)
class _Claimed:
    """What a header says of its file."""

    header: Header
    voxels: tuple[int, int]
    """The first byte, inflated, of the volume that is read, and the byte behind its last."""
    end: int
    """The byte behind the last voxel of the file."""

    def expect_end(self, name: str, size: int) -> None:
        """Raise UnusableScan if the file has many more bytes than its header says; packed, it may have 1 % more."""
        most = self.end + self.end // 100 + MOST_BEHIND
        expect_usable(size <= most, name, f"{self.end} bytes, as its header says", f"more than {most}",
                      "Its header is wrong, or the file is: copy or download it again.")


def _claimed(path: Path, number: int | None) -> _Claimed:
    """Return what the header of a NIfTI, Analyze or MGH file says of the file.

    Raises: UnusableScan if the file cannot be so, is no volume of real numbers, or needs more memory than there is.
    """
    files = files_of(path)
    header = parse_header(path, beginning_of(files[0], path))
    check_shape(path.name, header, number)
    size = header.voxels * header.number_type.itemsize
    start = header.voxels_at + (size * number if header.is_series else 0)
    claimed = _Claimed(header, (start, start + size), header.voxels_at + size * math.prod(header.shape[3:]))
    for part in files:
        with opened(part, path) as (_, most):
            claimed.expect_end(path.name, os.stat(part).st_size)
    if start + size <= most:
        expect_room(path.name, header)
    return claimed


def read_dicom(path: Path, number: int | None) -> tuple[Header, np.ndarray]:
    """Return the T1-weighted series in a folder of DICOM files; `path` is the folder or a file in it.

    Raises: UnusableScan as dicom.converted does, or if the series is not one volume of real numbers.
    """
    with dicom.converted(path) as nifti:
        try:
            return read_image(nifti, number)
        except UnusableScan as error:
            raise error.of(path.name) from None


Reader = Callable[[Path, int | None], tuple[Header, np.ndarray]]
"""A function that reads one format.

It is called with the path of a file, and with the number, from 0, of the volume that --volume asks for, or None. It
returns the header, whose `affines` or `sizes` say in which unit and order the indices run (see `headers.Header`), and
the voxels [i, j, k] in the file's own order and number type, unscaled; of a series the volume that is asked for, which
`headers.check_shape` refuses where it cannot be told. What cannot be used is an `UnusableScan`; an OSError may pass.
"""
READERS: dict[str, Reader] = {".nii.gz": read_image, ".nii": read_image, ".hdr": read_image, ".img": read_image,
                              ".hdr.gz": read_image, ".img.gz": read_image, ".mgz": read_image, ".mgh": read_image,
                              **dict.fromkeys(dicom.ENDINGS, read_dicom)}
"""The reader of each format, by the end of its files' names in lower case; `read_dicom` also reads a folder."""
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")


def suffix_of(name: str) -> str | None:
    """Return the end of a file's name that is in READERS, in lower case; None if its format is not known."""
    lower = name.lower()
    if not lower.endswith(tuple(READERS)):  # one call, for the many files that are no scans
        return None
    for suffix in READERS:
        if lower.endswith(suffix):
            return suffix


_spare = np.empty(0, np.uint8)


def _memory(size: int) -> np.ndarray:
    """Return `size` bytes, those of the last scan if nobody looks at these any more: fresh ones cost a quarter of the
    time in which a scan is inflated, for the system has to find and clear them."""
    global _spare
    if _spare.size < size or sys.getrefcount(_spare) > REFERENCES_IF_UNUSED:
        _spare = np.empty(size, np.uint8)
    return _spare[:size]


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that a scan consists of: itself, the header and the voxels of a pair .hdr and .img, or all DICOM
    files of a folder in natural order, none if it has none."""
    suffix = suffix_of(path.name) or ""
    if suffix in dicom.ENDINGS:
        return dicom.files_in(path.parent) or (path,)
    if not suffix and path.is_dir():
        return dicom.files_in(path)
    if suffix not in PAIRS:
        return (path,)

    def beside(kind: str) -> Path:
        stem = path.name[: -len(suffix)]
        packed = suffix.removeprefix(suffix[:4])
        names = [path.with_name(stem + each + end) for end in dict.fromkeys((packed, "", ".gz"))
                 for each in (kind, kind.upper())]
        return next((name for name in names if name.exists()), names[0])
    return (path, beside(".img")) if suffix.startswith(".hdr") else (beside(".hdr"), path)


def beginning_of(part: Path, scan: Path) -> bytes:
    """Return the first bytes of a file, inflated; a reader of gzip might look for more behind them, as far as it goes.
    """
    with errors_of(part, scan), open_regular(part) as file:
        packed, content = file.read(CHUNK), b""
        if not packed.startswith(GZIP):
            return packed[:BEGINNING_BYTES]
        while packed.startswith(GZIP) and len(content) < BEGINNING_BYTES:  # a member of several
            inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            content += inflater.decompress(packed, BEGINNING_BYTES - len(content))
            if not content and not inflater.eof:
                raise EOFError
            packed = inflater.unused_data
        return content


@contextlib.contextmanager
def opened(part: Path, scan: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open `part`, the scan or a file of its pair; yield its inflated bytes, and how many there can be at most."""
    with errors_of(part, scan), open_regular(part) as file:
        size = os.fstat(file.fileno()).st_size
        if file.peek(2).startswith(GZIP):
            inflating = GzipFile(fileobj=file, mode="rb")
            # GzipFile has no readinto of its own: reading through it would copy every byte once more.
            yield inflating._buffer, size * MOST_FROM_A_BYTE
        else:
            yield file, size


@contextlib.contextmanager
def errors_of(part: Path, scan: Path) -> Iterator[None]:
    """Turn what can go wrong into reasons while `part`, the scan or a file of its pair, is opened and read."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, InflateError):
        raise UnusableScan(scan.name, "a whole gzip file", "one that is cut short or damaged",
                           "Copy or download it again.") from None
    except FileNotFoundError:
        found = "a link to a file that is not there" if part.is_symlink() else f"no file {part.name}"
        whole = "a pair .hdr and .img" if suffix_of(scan.name) in PAIRS else "all files of a DICOM series"
        raise UnusableScan(scan.name, "a file" if part == scan else whole, found,
                           "Copy or download it (datalad get, for a DataLad folder).") from None
    except OSError as error:
        raise UnusableScan(scan.name, "a file that can be read", (error.strerror or str(error)).lower(),
                           "See its permissions and the disk.") from None
