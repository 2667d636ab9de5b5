"""First bytes of a NIfTI, Analyze or MGH file -> what its header says, in the same terms for all.

Where a header does not say how its indices lie, and the archive's layout or the user do, that is
taken, and named in `Volume.orientation_from`. Analyze's `orient` byte says it where it is not 0, which most
writers leave for "not set":

    1 coronal LSA   2 sagittal ASL   3 transverse, flipped LPS   4 coronal, flipped LIA   5 sagittal, flipped AIL

Source: ITK's AnalyzeImageIO (struct data_history) for 1 to 4, and mri_toolbox's avw_img_read for all five;
for 5 ITK's table says ASR, but its text, that pictures are flipped vertically, says AIL too.
"""

import contextlib
import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt2axcodes

from vqvae2.common import memory
from vqvae2.common.errors import UserError

# What nibabel repairs in a header it reports on stderr, in the middle of the progress bar.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
BEGINNING_BYTES = 1024
"""The number of bytes that are read first; the longest header has 540."""
ANALYZE_ORIENT = {1: "LSA", 2: "ASL", 3: "LPS", 4: "LIA", 5: "AIL"}
ANALYZE_ORIENT_AT = 252
MGH_RAS_FLAG_AT, MGH_SIZES_AT = 28, 30
FIRST_VOXEL_AT = {nib.Nifti1Image: 352, nib.Nifti2Image: 544}
LONGEST_QUATERNION = 1.001
MOST_DIFFERENCE_OF_SIZES = 0.01
"""Relative; where sform and qform differ in more, that is said."""
LEAST_SHEAR_SAID, MOST_SHEAR_DEGREES = 0.5, 5
"""Between these angles a sheared scan is used and that is said (sizes are wrong by 0.4 % at most: 1 - cos 5 degrees);
above, it is refused. Other readers differ: SimpleITK refuses 1 degree."""
MOST_ALONG_AN_AXIS = 8192
"""Voxels. Heads of 0.1 mm have about 2,000; the weights that draw an axis have a row for each pixel."""
BYTES_A_VOXEL, BYTES_IF_NOT_FINITE, BYTES_A_PLANE, BYTES_BESIDE = 1, 13, 40, 48 << 20
"""The memory that drawing a scan takes beside its voxels, as benchmarks/scan_memory.py measures it: for each voxel, for
each if some are not finite, for each voxel of the largest plane, and for all that does not grow with the scan."""
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""NIfTI's codes for metres and micrometres; 2 is mm, and 0, unknown, is mm in practice."""


class UnusableScan(UserError):
    """A file that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, name: str, rule: str, found: object, advice: str):
        self.reason = " ".join(f"expected {rule}, found {found}. {advice}".split())
        super().__init__(f"{name}: {self.reason}")

    def of(self, name: str) -> "UnusableScan":
        """Return the same about the file of this name."""
        self.args = (f"{name}: {self.reason}",)
        return self


def expect_usable(ok: bool, name: str, rule: str, found: object, advice: str) -> None:
    """Raise UnusableScan for the file of this name unless `ok`."""
    if not ok:
        raise UnusableScan(name, rule, found, advice)


@dataclass(frozen=True)
class Header:
    """The facts of a header, in the same terms for all formats."""

    shape: tuple[int, ...]
    """The lengths of the file's axes: [i, j, k], or [i, j, k, volume] for a series."""
    number_type: np.dtype
    """The type of a voxel, as stored."""
    voxels_at: int = 0
    """Bytes before the first voxel, for readers that want to know."""
    sizes: tuple[float, ...] = (1.0, 1.0, 1.0)
    """The sizes of a voxel along the three indices, as written; they are used if `affines` is empty."""
    mm_per_unit: float = 1.0
    slope: float = 1.0
    inter: float = 0.0
    affines: tuple[tuple[str, np.ndarray | None], ...] = ()
    """Matrices from indices to RAS positions, each with its place in the header, best first; None if damaged."""
    storage: str | None = None
    """Analyze's orient byte, if it is set."""

    @property
    def is_series(self) -> bool:
        """Return whether there are several volumes, [x, y, z, volume]."""
        return len(self.shape) == 4 and min(self.shape) > 1

    @property
    def voxels(self) -> int:
        """Return the number of voxels of one volume."""
        return math.prod(self.shape[:3])

    @property
    def background(self) -> float | None:
        """Return the stored number nearest to what stands for 0 (scale factors are rounded); None if there is none."""
        if self.inter == 0:
            return 0.0
        stored = -self.inter / self.slope
        if self.number_type.kind == "f":
            return float(self.number_type.type(stored))
        limits = np.iinfo(self.number_type)
        return float(round(stored)) if limits.min <= round(stored) <= limits.max else None


def parse_header(path: Path, beginning: bytes) -> Header:
    """Return what the first bytes of a file, or of a pair's header, say.

    Raises: UnusableScan if they are of no image that is known, or if a voxel size is not above 0.
    """
    expect_usable(bool(beginning), path.name, "an image", "an empty file", "Copy or download it again.")
    try:
        kind = image_class(path, beginning)
        header = _parse_mgh(beginning) if kind is nib.MGHImage else _parse_analyze(kind, beginning)
        shape = header.shape
        while len(shape) > 3 and shape[-1] == 1:  # OASIS-1 writes one volume as 256 x 256 x 128 x 1
            shape = shape[:-1]
        header = replace(header, shape=shape)
        if header.voxels_at < 0 or min(header.shape, default=0) < 1:
            raise ValueError(f"shape {header.shape}, voxels at byte {header.voxels_at}")
    except Exception as error:  # nibabel raises a dozen kinds for damaged headers; none of them is ours
        start = beginning[:40].decode("latin-1")
        found, advice = f"something else ({error})", "Copy or download it again."
        if re.fullmatch(r"[\x20-\x7e\t\r\n]+", start):
            found = f"text ({start.split(chr(10))[0]!r})"
            advice = "Download it (datalad get)." if "/annex/objects/" in start else advice
        elif beginning[128:132] == b"DICM":
            found, advice = "a DICOM file", "Convert it, with dcm2niix for instance."
        raise UnusableScan(path.name, "a NIfTI, Analyze or MGH image", found, advice) from None
    expect_usable(len(header.shape) < 3 or all(math.isfinite(size) and size > 0 for size in header.sizes), path.name,
                  "voxel sizes above 0 mm", " x ".join(f"{size:g}" for size in header.sizes),
                  "Repair its header, or leave the scan out.")
    return header


def check_shape(name: str, header: Header, number: int | None) -> None:
    """Raise UnusableScan unless a file holds one volume of real numbers, or a series and `number` is one of them."""
    shape = header.shape
    if header.is_series and number is not None:
        expect_usable(number < shape[3], name, f"a volume {number} (--volume)",
                      f"{shape[3]} volumes, 0 to {shape[3] - 1}", "Give a smaller number.")
    else:
        # Advice for every command that reads scans, so that none names a flag which another lacks.
        advice = ("It looks like a series or fMRI: leave it out, or give --volume 0 for the first volume of each "
                  "series." if header.is_series else
                  "It looks like a picture: give whole volumes." if len(shape) < 4 else "Convert it to one volume.")
        expect_usable(len(shape) == 3 and min(shape) > 1, name, "one 3-D volume", f"shape {shape}", advice)
    expect_usable(header.number_type.kind in "iuf", name, "one real number in a voxel", f"type {header.number_type}",
                  "Convert it to float32.")


def expect_room(name: str, header: Header, *, not_finite: bool = False) -> None:
    """Raise UnusableScan unless a scan can be read and drawn in the memory that this process may take.

    Args:
        name: the file's name.
        header: the file's header.
        not_finite: whether some of the voxels are not finite.
    """
    a_voxel = header.number_type.itemsize + (BYTES_IF_NOT_FINITE if not_finite else BYTES_A_VOXEL)
    needed = header.voxels * a_voxel + header.voxels // min(header.shape[:3]) * BYTES_A_PLANE + BYTES_BESIDE
    shape = " x ".join(map(str, header.shape[:3]))
    expect_bytes(name, needed, f"{shape} voxels of {header.number_type}")
    expect_usable(max(header.shape[:3]) <= MOST_ALONG_AN_AXIS, name, f"at most {MOST_ALONG_AN_AXIS} voxels along an "
                  "axis", shape, "Repair its header, or leave the scan out.")


def expect_bytes(name: str, needed: int, what: str) -> None:
    """Raise UnusableScan unless this process may take `needed` bytes for `what` of a scan."""
    room = memory.room()
    expect_usable(needed <= room, name, f"a scan that needs at most {room / 1e6:,.0f} MB, this process's share of the "
                  f"free memory", f"one that needs {needed / 1e6:,.0f} MB for {what}",
                  "Give fewer --workers, free some memory, or leave the scan out.")


def image_class(path: Path, beginning: bytes) -> type:
    """Return nibabel's class for a file that begins so. Raises: ValueError if there is none."""
    if path.suffix.lower() in (".mgh", ".mgz"):
        return nib.MGHImage
    header_size = {int.from_bytes(beginning[:4], order) for order in ("little", "big")}
    pair = path.name.lower().removesuffix(".gz").endswith((".hdr", ".img"))
    if 540 in header_size:
        return nib.Nifti2Pair if pair else nib.Nifti2Image
    if 348 not in header_size:
        raise ValueError("no image begins so")
    if pair and beginning[344:347] != b"ni1":
        return nib.AnalyzeImage
    return nib.Nifti1Pair if pair else nib.Nifti1Image


def _parse_analyze(kind: type, beginning: bytes) -> Header:
    """Return the facts of an Analyze header, or of a NIfTI header, which is the same with more in it."""
    block = beginning[: kind.header_class.template_dtype.itemsize]
    header, as_written = kind.header_class(block), kind.header_class(block, check=False)
    slope, inter = header.get_slope_inter()
    affines: dict[str, np.ndarray | None] = {}
    is_nifti = kind is not nib.AnalyzeImage
    if is_nifti:  # b, c and d, rounded, may be a hair longer than 1, where the fourth number is 0
        length = math.sqrt(sum(float(header[f"quatern_{each}"]) ** 2 for each in "bcd"))
        for each in "bcd" if 1 < length <= LONGEST_QUATERNION else "":
            header[f"quatern_{each}"] /= length
    for name in ("sform", "qform") if is_nifti else ():
        if int(header[f"{name}_code"]) > 0:
            affines[name] = None
            with contextlib.suppress(ValueError, nib.spatialimages.HeaderDataError):
                affines[name] = getattr(header, f"get_{name}")()
    # A file of its own cannot have voxels within its header, though some writers leave 0.
    voxels_at = max(int(header.get_data_offset()), FIRST_VOXEL_AT.get(kind, 0))
    unit = int(header["xyzt_units"]) & 7 if is_nifti else 0
    return Header(tuple(map(int, header.get_data_shape())), header.get_data_dtype(), voxels_at,
                  tuple(map(float, as_written.get_zooms()[:3])), MM_PER_UNIT.get(unit, 1.0),
                  1.0 if slope is None else slope, 0.0 if inter is None else inter, tuple(affines.items()),
                  None if is_nifti else ANALYZE_ORIENT.get(beginning[ANALYZE_ORIENT_AT]))


def _parse_mgh(beginning: bytes) -> Header:
    header = nib.MGHImage.header_class(beginning)
    good = int.from_bytes(beginning[MGH_RAS_FLAG_AT:MGH_SIZES_AT], "big") == 1
    # Without the flag FreeSurfer takes every voxel for a cube of 1 mm, whatever stands here.
    sizes = np.frombuffer(beginning, ">f4", 3, MGH_SIZES_AT) if good else np.ones(3)
    return Header(tuple(map(int, header.get_data_shape())), header.get_data_dtype(), int(header.get_data_offset()),
                  tuple(map(float, sizes)), affines=(("mgh", header.get_affine()),) if good else ())


@dataclass(frozen=True)
class Orientation:
    """How a file's three indices lie in space."""

    axes: np.ndarray
    """nibabel's [3, 2]: the RAS axis that each index runs along, and 1 or -1 for its direction."""
    sizes_mm: tuple[float, ...]
    """The sizes of a voxel along the file's own indices."""
    place: str
    """What says it: sform, qform, mgh, orient, layout or assumed."""
    affine: np.ndarray | None = None
    """[4, 4]: from the file's own indices to RAS positions in mm; None where no matrix says it."""
    geometry: str = ""
    """What other programs may take otherwise; mostly empty."""


def find_orientation(name: str, header: Header, layout: str | None = None, assumed: str | None = None,
                     trust: str = "sform") -> Orientation:
    """Return how the indices lie: by the header, else by `layout`, else as `assumed`.

    Args:
        name: the file's name, for errors.
        header: the file's header; of its matrices the one that `trust` names counts first.
        layout, assumed, trust: see `volumes.read_volume`.
    Source: closest canonical orientation as in nibabel.orientations.io_orientation.
    Raises: UnusableScan if nothing says it, if the header's matrix is no orientation, or if its axes are sheared.
    """
    usable = [found for place, matrix in header.affines
              if (found := _by_matrix(place, matrix, header.mm_per_unit)) is not None]
    usable.sort(key=lambda found: found[0].place != trust)
    if usable:
        first, shear = usable[0]
        others = [other for other, other_shear in usable[1:] if other_shear <= MOST_SHEAR_DEGREES]
        expect_usable(shear <= MOST_SHEAR_DEGREES, name, f"axes at right angles (within {MOST_SHEAR_DEGREES} degrees)",
                      f"an {first.place} that is {shear:.0f} degrees off", "Resample the scan, or "
                      + (f"give --trust {others[0].place}." if others else "leave it out."))
        said = [f"{_said(first)}, {_said(other)}" for other, _ in usable[1:] if _differ(first, other)]
        if shear > LEAST_SHEAR_SAID:
            said.append(f"axes of the {first.place} {shear:.1f} degrees off right angles")
        return replace(first, geometry="; ".join(said))
    expect_usable(not header.affines, name, "an orientation in its header", "a matrix that maps the volume to a plane "
                  "or nowhere", "Repair its header (sform), or leave the scan out.")
    for place, storage in (("orient", header.storage), ("layout", layout), ("assumed", assumed)):
        if storage is not None:
            return Orientation(axcodes2ornt(tuple(storage)), tuple(size * header.mm_per_unit for size in header.sizes),
                               place)
    raise UnusableScan(name, "an orientation in its header",
                       "none (NIfTI without sform and qform, Analyze, or MGH without its flag)",
                       "If you know what its indices grow towards, give --assume-orientation, such as LAS.")


def _by_matrix(place: str, matrix: np.ndarray | None, mm_per_unit: float) -> tuple[Orientation, float] | None:
    """Return the orientation of a matrix, and by how many degrees its axes are off right angles; None if it is none."""
    if matrix is None or not np.isfinite(matrix).all():
        return None
    sizes = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    if not (sizes > 0).all() or abs(np.linalg.det(directions := matrix[:3, :3] / sizes)) <= 1e-6:
        return None
    axes = io_orientation(matrix)
    if np.isnan(axes).any():
        return None
    cosines = np.abs(directions.T @ directions - np.eye(3)).max()
    return (Orientation(axes, tuple(map(float, sizes * mm_per_unit)), place, np.diag([mm_per_unit] * 3 + [1]) @ matrix),
            math.degrees(math.asin(min(1.0, float(cosines)))))


def _differ(first: Orientation, other: Orientation) -> bool:
    return not np.array_equal(first.axes, other.axes) or any(
        abs(one / another - 1) > MOST_DIFFERENCE_OF_SIZES for one, another in zip(first.sizes_mm, other.sizes_mm))


def _said(orientation: Orientation) -> str:
    sizes = " x ".join(f"{size:.4g}" for size in orientation.sizes_mm)
    return f"{orientation.place} {''.join(ornt2axcodes(orientation.axes))} {sizes} mm"
