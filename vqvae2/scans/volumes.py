"""Scan of any format that readers.py knows -> RAS volume with voxel size in mm.

RAS: the first index grows towards the subject's Right, the second towards Anterior, the third
towards Superior, whatever the order in the file. Axes are permuted and flipped (closest canonical),
never interpolated, so a voxel keeps its value. Voxels stay in the file's number type, unscaled, and
are a view of what was read: a copy of a scan in float64 would be 120 MB.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, ornt2axcodes

from vqvae2.scans.headers import Header, UnusableScan, find_orientation
from vqvae2.scans.readers import READERS, crc32, errors_of, files_of, read_image, suffix_of

LONGEST_MM = (1, 1000)
"""Bounds of the longest side of a volume that may hold a head; beyond them the unit is wrong."""
LEAST_BACKGROUND = 0.05
"""Share of a volume; less may be the same number in all corners by chance."""


@dataclass(frozen=True)
class Volume:
    """One scan in RAS order."""

    voxels: np.ndarray
    """[right, anterior, superior], as stored, in the file's number type; `scaled` gives what they mean."""
    voxel_size_mm: tuple[float, float, float]
    """The sizes of a voxel along these three axes."""
    name: str = ""
    """The file's name, for messages."""
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


def read_volume(path: Path, *, layout: str | None = None, assumed: str | None = None,
                number: int | None = None) -> Volume:
    """Return the volume in a file of a known format; a pair of .hdr and .img has either name.

    Args:
        path: the file; it is read to its end.
        layout: what the file's indices grow towards by its place in a known archive (LAS, ASL, …), used
            only where the header does not say: NIfTI with sform and qform code 0, Analyze, MGH without
            goodRASFlag.
        assumed: the same, used where there is no `layout` either.
        number: which volume of a series, from 0; without it a series is refused.
    Raises: UnusableScan for a file that is missing, damaged, no image, not one 3-D volume of real numbers,
        of unknown orientation, or the same value everywhere.
    Source: closest canonical orientation as in nibabel.orientations.io_orientation.
    """
    sha256 = file_sha256(path)  # before it is read: if it changes meanwhile, the next run sees another hash
    header, stored, not_finite, fingerprint = _read(path, number)
    axes, sizes_mm, orientation_from = find_orientation(path.name, header, layout, assumed)
    size_mm = tuple(sizes_mm[index] for index in np.argsort(axes[:, 0]))
    first = stored[0, 0, 0]
    if (stored[::9, ::9, ::9] == first).all() and (stored == first).all():
        raise UnusableScan(path.name, "a picture", f"the same value, {first:g}, in every voxel",
                           "Leave the scan out, or copy it again.")
    voxels = apply_orientation(stored, axes)
    longest = max(length * size for length, size in zip(voxels.shape, size_mm))
    if not LONGEST_MM[0] <= longest <= LONGEST_MM[1]:
        raise UnusableScan(path.name, f"a volume {LONGEST_MM[0]} to {LONGEST_MM[1]} mm long", f"{longest:g} mm",
                           "Repair the voxel sizes or their unit in its header.")
    return Volume(
        voxels, size_mm, path.name, header.slope, header.inter, _background(header, stored),
        None if not_finite is None else apply_orientation(not_finite, axes),
        number if header.is_series else None, "".join(ornt2axcodes(axes)), orientation_from, sha256, fingerprint)


def _background(header: Header, stored: np.ndarray) -> float | None:
    """Return the stored number of the background: it stands for 0, or all eight corners have it (after z-scoring)."""
    corner, all_corners = stored[0, 0, 0], stored[np.ix_([0, -1], [0, -1], [0, -1])]
    of_corners = (all_corners == corner).all() and (stored[::9, ::9, ::9] == corner).mean() > LEAST_BACKGROUND
    return float(corner) if of_corners else header.background


def same_voxels(one: Path, other: Path, number: int | None) -> bool:
    """Return whether two scans have the same voxels in the same order, however they are packed.

    Raises: UnusableScan if one cannot be read any more.
    """
    (_, first, _, fingerprint), (_, second, _, other_fingerprint) = (_read(path, number) for path in (one, other))
    return fingerprint == other_fingerprint and np.array_equal(first, second)


def file_sha256(path: Path) -> str:
    """Return `Volume.sha256` without inflating anything.

    Raises: UnusableScan if the file, or the other one of its pair, cannot be read.
    """
    digest = hashlib.sha256()
    for part in files_of(path):
        with errors_of(part, path), open(part, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, number: int | None) -> tuple[Header, np.ndarray, np.ndarray | None, str]:
    """Return the header, the voxels in the file's own order, where they were not finite, and their fingerprint.

    What is not finite has become background; None instead of the third where all voxels are finite.
    """
    reader = READERS.get(suffix_of(path.name), read_image)
    with errors_of(path, path):
        header, voxels = reader(path, number)
    voxels = np.require(voxels, requirements="W")
    checksum = crc32(voxels.reshape(-1, order="F").view(np.uint8))
    not_finite = None
    if voxels.dtype.kind == "f" and not (finite := np.isfinite(voxels)).all():
        if not finite.any():
            raise UnusableScan(path.name, "a picture", "no finite value in any voxel",
                               "Leave the scan out, or repair it.")
        not_finite = ~finite
        voxels[not_finite] = header.background
    return header, voxels, not_finite, f"{voxels.dtype.str[1:]}-{'x'.join(map(str, voxels.shape))}-{checksum:08x}"
