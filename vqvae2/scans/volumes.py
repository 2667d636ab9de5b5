"""NIfTI, Analyze or MGH file -> RAS volume with voxel size in mm.

RAS: the first index grows towards the subject's Right, the second towards Anterior, the third
towards Superior, whatever the order in the file. Axes are permuted and flipped (closest canonical),
never interpolated, so a voxel keeps its value. Voxels stay in the file's number type, unscaled, and
are a view of what was read: a copy of a scan in float64 would be 120 MB.
"""

import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, ornt2axcodes

from vqvae2.scans.headers import BEGINNING_BYTES, Header, UnusableScan, find_orientation, parse_header
from vqvae2.scans.inflate import Damaged, Source, crc32

LONGEST_MM = (1, 1000)
"""Longest side of a volume that may hold a head; what lies outside has its unit wrong."""
LEAST_BACKGROUND = 0.05
"""Share of a volume; less may be the same number in all corners by chance."""
REFERENCES_IF_UNUSED = 2
"""Of the module, and of sys.getrefcount itself."""


@dataclass(frozen=True)
class Volume:
    """One scan in RAS order."""

    voxels: np.ndarray
    """[right, anterior, superior], as stored, in the file's number type; `scaled` gives what they mean."""
    voxel_size_mm: tuple[float, float, float]
    """Along those three."""
    name: str = ""
    """The file's, for messages."""
    slope: float = 1.0
    inter: float = 0.0
    background: float | None = 0.0
    """The stored number that is drawn as 0: it stands for 0, or all corners have it. None where there is none."""
    not_finite: np.ndarray | None = None
    """bool, like `voxels`: those that were not finite and are background now; None where all were finite."""
    number: int | None = None
    """Which of a series it is, from 0; None for a file of one volume."""
    orientation: str = "RAS"
    """What the file's own three indices grow towards, such as LAS."""
    orientation_from: str = "sform"
    """sform, qform, mgh or orient (Analyze's byte) in the header; layout or assumed where it says nothing."""
    sha256: str = ""
    """Of the file as it lies on the disk; of a pair header and voxels, one after the other."""
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


@dataclass(frozen=True)
class _Stored:
    """What was read of a file."""

    header: Header
    voxels: np.ndarray
    """In the file's own order; what is not finite has become background."""
    not_finite: np.ndarray | None
    fingerprint: str


def read_volume(path: Path, *, layout: str | None = None, assumed: str | None = None,
                number: int | None = None) -> Volume:
    """Return the volume in a .nii, .nii.gz, .mgh or .mgz file, or in a pair of .hdr and .img by either name.

    Args:
        path: the file; it is read once, and to its end.
        layout: what the file's indices grow towards by its place in a known archive (LAS, ASL, …), used
            only where the header does not say: NIfTI with sform and qform code 0, Analyze, MGH without
            goodRASFlag.
        assumed: the same, used where there is no `layout` either.
        number: which volume of a series, from 0; without it a series is refused.
    Raises: UnusableScan for a file that is missing, damaged, no image, not one 3-D volume of real numbers,
        of unknown orientation, or the same value everywhere.
    Source: closest canonical orientation as in nibabel.orientations.io_orientation.
    """
    stored, sha256 = _read(path, number)
    header = stored.header
    orientation = find_orientation(path.name, header, layout, assumed)
    order = [list(orientation.axes[:, 0]).index(axis) for axis in range(3)]
    size_mm = tuple(orientation.sizes_mm[index] for index in order)
    _check_contrast(path.name, stored.voxels)
    voxels = apply_orientation(stored.voxels, orientation.axes)
    longest = max(length * size for length, size in zip(voxels.shape, size_mm))
    if not LONGEST_MM[0] <= longest <= LONGEST_MM[1]:
        raise UnusableScan(path.name, f"a volume {LONGEST_MM[0]} to {LONGEST_MM[1]} mm long", f"{longest:g} mm",
                           "Repair the voxel sizes or their unit in its header.")
    return Volume(
        voxels, size_mm, path.name, header.slope, header.inter, _background(stored),
        None if stored.not_finite is None else apply_orientation(stored.not_finite, orientation.axes),
        number if header.is_series else None, "".join(ornt2axcodes(orientation.axes)), orientation.origin,
        sha256, stored.fingerprint)


def _background(stored: _Stored) -> float | None:
    """The stored number of the background: what stands for 0, or the one of all eight corners, after z-scoring say."""
    corners = stored.voxels[np.ix_([0, -1], [0, -1], [0, -1])]
    thinned = stored.voxels[::9, ::9, ::9]
    if (corners == corners[0, 0, 0]).all() and (thinned == corners[0, 0, 0]).mean() > LEAST_BACKGROUND:
        return float(corners[0, 0, 0])
    return stored.header.background


def same_voxels(one: Path, other: Path, number: int | None) -> bool:
    """Whether two scans have the same voxels in the same order, however they are packed.

    Raises: UnusableScan if one cannot be read any more.
    """
    first, second = (_read(path, number)[0] for path in (one, other))
    return first.fingerprint == second.fingerprint and np.array_equal(first.voxels, second.voxels)


def file_sha256(path: Path) -> str:
    """Return `Volume.sha256` without inflating anything.

    Raises: UnusableScan if the file, or the other one of its pair, cannot be read.
    """
    digest = hashlib.sha256()
    for part in dict.fromkeys(_header_and_voxels(path)):
        with _errors_of(part, path), open(part, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that a scan consists of: itself, or of a pair the header and the voxels."""
    return tuple(dict.fromkeys(_header_and_voxels(path)))


def _read(path: Path, number: int | None) -> tuple[_Stored, str]:
    """Return what is in a file, and the SHA-256 of it as it lies on the disk."""
    header_path, voxels_path = _header_and_voxels(path)
    digest = hashlib.sha256()
    with _errors_of(header_path, path), Source(header_path, digest) as source:
        beginning = source.read(BEGINNING_BYTES)
        if header_path == voxels_path:
            header = parse_header(path, beginning)
            return _read_voxels(path.name, header, number, source, beginning), digest.hexdigest()
        source.skip()
    header = parse_header(path, beginning)
    with _errors_of(voxels_path, path), Source(voxels_path, digest) as source:
        return _read_voxels(path.name, header, number, source, b""), digest.hexdigest()


def _read_voxels(name: str, header: Header, number: int | None, source: Source, beginning: bytes) -> _Stored:
    """Return one volume from a source of which `beginning` has been read; the source is read to its end."""
    shape = header.shape
    if header.is_series and number is not None:
        if number >= shape[3]:
            raise UnusableScan(name, f"a volume {number} (--volume)", f"{shape[3]} volumes, 0 to {shape[3] - 1}",
                               "Give a smaller number.")
    elif len(shape) != 3 or min(shape) < 2:
        advice = ("It looks like a series or fMRI: point --scans at T1w files, or drop --strict to skip it; --volume 0 "
                  "takes the first volume of each series." if header.is_series else
                  "It looks like a picture: point --scans at whole volumes." if len(shape) < 4 else
                  "Convert it to one volume.")
        raise UnusableScan(name, "one 3-D volume", f"shape {shape}", advice)
    if header.number_type.kind not in "iuf":
        raise UnusableScan(name, "one real number in a voxel", f"type {header.number_type}", "Convert it to float32.")
    size = math.prod(shape[:3]) * header.number_type.itemsize
    start = header.voxels_at + (size * number if header.is_series else 0)
    # Asked before memory is taken: a damaged header may claim terabytes.
    if (held := source.holds(start + size)) < start + size:
        raise UnusableScan(name, f"{start + size} bytes for its {' x '.join(map(str, shape))} voxels", held,
                           "It is cut short, or its header is wrong: copy or download it again.")
    memory, plane_size = _memory(size), size // shape[2]
    voxels = memory.view(header.number_type).reshape(shape[:3], order="F")
    source.skip(max(0, start - len(beginning)))
    already = beginning[start:start + size]
    memory[: len(already)] = np.frombuffer(already, np.uint8)
    not_finite, checksum = None, 0
    for index in range(shape[2]):  # what is in the processor's cache is looked at before the next plane comes
        begin, end = index * plane_size, (index + 1) * plane_size
        begin = max(begin, min(len(already), end))
        if source.fill(memoryview(memory[begin:end])) < end - begin:
            raise Damaged("less data than the file's size told")
        checksum = crc32(memory[index * plane_size:end], checksum)
        if (wrong := _not_finite(voxels[..., index])) is not None:
            not_finite = np.zeros(voxels.shape, bool, order="F") if not_finite is None else not_finite
            not_finite[..., index] = wrong
            voxels[..., index][wrong] = header.background
    source.skip()
    if not_finite is not None and not_finite.all():
        raise UnusableScan(name, "a picture", "no finite value in any voxel", "Leave the scan out, or repair it.")
    return _Stored(header, voxels, not_finite,
                   f"{voxels.dtype.str[1:]}-{'x'.join(map(str, voxels.shape))}-{checksum:08x}")


def _not_finite(plane: np.ndarray) -> np.ndarray | None:
    """Return where numbers are not finite; None if all are."""
    if plane.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        if np.isfinite(plane.sum()):
            return None
    wrong = ~np.isfinite(plane)
    return wrong if wrong.any() else None  # a sum of finite numbers may be too large as well


_spare = np.empty(0, np.uint8)


def _memory(size: int) -> np.ndarray:
    """Return `size` bytes, those of the last scan if nobody looks at them any more: fresh ones cost a quarter of the
    time in which a scan is inflated, for the system has to find and clear them."""
    global _spare
    if _spare.size < size or sys.getrefcount(_spare) > REFERENCES_IF_UNUSED:
        _spare = np.empty(size, np.uint8)
    return _spare[:size]


def _header_and_voxels(path: Path) -> tuple[Path, Path]:
    """The two files of a pair, or twice the same."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path

    def beside(suffix: str) -> Path:
        names = path.with_suffix(suffix), path.with_suffix(suffix.upper())
        return names[1] if names[1].exists() and not names[0].exists() else names[0]
    return (path, beside(".img")) if path.suffix.lower() == ".hdr" else (beside(".hdr"), path)


@contextlib.contextmanager
def _errors_of(part: Path, scan: Path) -> Iterator[None]:
    """Make reasons of what can go wrong while `part`, the scan or a file of its pair, is opened and read."""
    again = "Copy or download it again."
    try:
        yield
    except Damaged:
        raise UnusableScan(scan.name, "a whole gzip file", "one that is cut short or damaged", again) from None
    except FileNotFoundError:
        found = "a link to a file that is not there" if part.is_symlink() else f"no file {part.name}"
        raise UnusableScan(scan.name, "a file" if part == scan else "a pair .hdr and .img", found,
                           "Copy or download it (datalad get, for a DataLad folder).") from None
    except OSError as error:
        raise UnusableScan(scan.name, "a file that can be read", (error.strerror or str(error)).lower(),
                           "See its permissions and the disk.") from None


def _check_contrast(name: str, voxels: np.ndarray) -> None:
    first = voxels[0, 0, 0]
    if (voxels[::9, ::9, ::9] == first).all() and (voxels == first).all():
        raise UnusableScan(name, "a picture", f"the same value, {first:g}, in every voxel",
                           "Leave the scan out, or copy it again.")
