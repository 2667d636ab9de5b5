"""NIfTI, Analyze or MGH file -> RAS volume with voxel size in mm.

RAS: the first index grows towards the subject's Right, the second towards Anterior, the third
towards Superior, whatever the order in the file. Axes are permuted and flipped (closest canonical),
never interpolated, so a voxel keeps its value. Voxels stay in the file's number type where it needs
no scaling, and are a view of what was read: a copy of a scan in float64 would be 120 MB.

A file is read once, as bytes: that gives its hash, and gzip's check sum proves it whole, which
reading only as many bytes as the header asks for would not.
"""

import gzip
import hashlib
import io
import logging
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt2axcodes

from vqvae2.errors import UserError

# What nibabel repairs in a header it reports on stderr, in the middle of the progress bar.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""NIfTI's codes for metres and micrometres; 2 is mm, and 0, unknown, is mm in practice."""


class UnusableScan(UserError):
    """A file that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, name: str, rule: str, found: str, advice: str):
        self.reason = " ".join(f"expected {rule}, found {found}. {advice}".split())
        super().__init__(f"{name}: {self.reason}")


@dataclass(frozen=True)
class Volume:
    """One scan in RAS order."""

    voxels: np.ndarray
    """[right, anterior, superior], finite, in the file's number type, or float32 where it is scaled."""
    voxel_size_mm: tuple[float, float, float]
    """Along those three."""
    orientation: str
    """What the file's own three indices grow towards, such as LAS."""
    nan_voxels: int
    """Voxels that were not finite, and are 0 now."""


@dataclass(frozen=True)
class ScanFile:
    """The bytes of a scan as they lie on the disk."""

    path: Path
    header: bytes
    """Of a pair (.hdr and .img) the header; else the same as `voxels`."""
    voxels: bytes

    @property
    def sha256(self) -> str:
        """Of the file, or of the header and the voxels of a pair, one after the other."""
        digest = hashlib.sha256(self.header)
        if self.header is not self.voxels:
            digest.update(self.voxels)
        return digest.hexdigest()


def read_file(path: Path) -> ScanFile:
    """Return the bytes of `path` (.nii, .nii.gz, .mgh, .mgz, or .hdr or .img with the other beside it).

    Raises: UnusableScan if a file is missing, empty or not to be read.
    """
    if path.suffix.lower() not in (".hdr", ".img"):
        content = _read_bytes(path, path)
        return ScanFile(path, content, content)
    header, voxels = ((path, _beside(path, ".img")) if path.suffix.lower() == ".hdr" else (_beside(path, ".hdr"), path))
    return ScanFile(path, _read_bytes(header, path), _read_bytes(voxels, path))


def read_volume(path: Path, storage: str | None = None) -> Volume:
    """Return the volume in a file; see `read_file` and `to_volume`."""
    return to_volume(read_file(path), storage)


def to_volume(file: ScanFile, storage: str | None = None) -> Volume:
    """Return the scan's volume in RAS order.

    Args:
        file: as `read_file` returns it.
        storage: what the file's three indices grow towards (such as LAS or ASL), used only where its
            header has no orientation: NIfTI with sform and qform code 0, Analyze, MGH without goodRASFlag.
    Raises: UnusableScan for a file that is damaged, is no image, is not one 3-D volume, has no
        orientation while `storage` is None, or has the same value everywhere.
    Source: closest canonical orientation as in nibabel.orientations.io_orientation.
    """
    name = file.path.name
    header, content = _decompressed(file.header, name), _decompressed(file.voxels, name)
    image = _open(name, file.path, header, content)
    voxels = _read_voxels(name, image, len(content))
    affine = _affine(name, image, header)
    if affine is None:
        if storage is None:
            raise UnusableScan(name, "an orientation in its header", "none (no sform or qform, or Analyze format)",
                               "If you know what its indices grow towards, give --assume-orientation, such as LAS.")
        orientation = axcodes2ornt(tuple(storage))
        sizes = np.array(image.header.get_zooms()[:3], dtype=float)
    else:
        orientation = io_orientation(affine)
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    sizes = sizes * _mm_per_unit(image)
    voxels, nan_voxels = _finite(name, apply_orientation(voxels, orientation))
    _check_contrast(name, voxels)
    in_ras = [float(sizes[list(orientation[:, 0]).index(axis)]) for axis in range(3)]
    return Volume(voxels, tuple(in_ras), "".join(ornt2axcodes(orientation)), nan_voxels)


def _beside(path: Path, suffix: str) -> Path:
    """The other file of a pair."""
    other = path.with_suffix(suffix)
    return other if other.exists() else path.with_suffix(suffix.upper())


def _read_bytes(path: Path, scan: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        found = "a link to a file that is not there" if path.is_symlink() else f"no file {path.name}"
        raise UnusableScan(scan.name, "a file" if path == scan else "a pair .hdr and .img", found,
                           "Copy or download it (datalad get, for a DataLad folder).") from None
    except OSError as error:
        raise UnusableScan(scan.name, "a file that can be read", (error.strerror or str(error)).lower(),
                           "See its permissions and the disk.") from None
    if not content:
        raise UnusableScan(scan.name, "an image", f"an empty file {path.name}", "Copy or download it again.")
    return content


def _decompressed(content: bytes, name: str) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:
        raise UnusableScan(name, "a whole gzip file", f"one that is cut short or damaged ({str(error).rstrip('.')})",
                           "Copy or download it again.") from None


def _open(name: str, path: Path, header: bytes, content: bytes) -> nib.spatialimages.SpatialImage:
    """Return nibabel's image, with only its header read."""
    kind = _kind(path, header)
    files = {"image": FileHolder(fileobj=io.BytesIO(content))}
    if path.suffix.lower() in (".hdr", ".img"):
        files["header"] = FileHolder(fileobj=io.BytesIO(header))
    try:
        if kind is None:
            raise ValueError("no such file begins so")
        return kind.from_file_map(files)
    except Exception as error:  # nibabel raises a dozen kinds for damaged headers; none of them is ours
        text = re.match(rb"[\x20-\x7e\t\r\n]{1,40}", header)
        whole_text = text is not None and (len(text[0]) == 40 or len(text[0]) == len(header))
        found = f"text ({text[0].decode().split(chr(10))[0]!r})" if whole_text else f"something else ({error})"
        raise UnusableScan(name, "a NIfTI, Analyze or MGH image", found, "Copy or download it again.") from None


def _kind(path: Path, header: bytes) -> type | None:
    if path.suffix.lower() in (".mgh", ".mgz"):
        return nib.MGHImage
    header_size = {int.from_bytes(header[:4], order) for order in ("little", "big")}
    pair = path.suffix.lower() in (".hdr", ".img")
    if 540 in header_size:
        return nib.Nifti2Pair if pair else nib.Nifti2Image
    if 348 not in header_size:
        return None
    if not pair:
        return nib.Nifti1Image
    return nib.Nifti1Pair if header[344:347] == b"ni1" else nib.AnalyzeImage


def _read_voxels(name: str, image: nib.spatialimages.SpatialImage, available: int) -> np.ndarray:
    shape, number_type = image.shape, image.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:  # OASIS-1 writes one volume as 256 x 256 x 128 x 1
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        advice = ("It looks like a series or fMRI: point --scans at T1w files, or drop --strict to skip it."
                  if len(shape) > 3 else "It looks like a picture: point --scans at whole volumes.")
        raise UnusableScan(name, "one 3-D volume", f"shape {tuple(map(int, image.shape))}", advice)
    if number_type.kind not in "iufb":
        raise UnusableScan(name, "one real number in a voxel", f"type {number_type}", "Convert it to float32.")
    needed = int(image.dataobj.offset) + math.prod(map(int, shape)) * number_type.itemsize
    if available < needed:
        raise UnusableScan(name, f"{needed} bytes for its {' x '.join(map(str, shape))} voxels", f"{available}",
                           "It is cut short: copy or download it again.")
    try:
        unscaled = (image.dataobj.slope, image.dataobj.inter) in ((1, 0), (None, None))
        voxels = image.dataobj.get_unscaled() if unscaled else np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # as in _open
        raise UnusableScan(name, "voxels", f"an error ({error})", "Copy or download it again.") from None
    return voxels.reshape(shape, order="F")


def _affine(name: str, image: nib.spatialimages.SpatialImage, header: bytes) -> np.ndarray | None:
    """Return the file's own 4 x 4 matrix from indices to positions, or None where it has none."""
    if isinstance(image, nib.MGHImage):
        oriented = sizes_are_free = bool(image.header["goodRASFlag"])
    elif isinstance(image, nib.Nifti1Pair):  # the base class of the other NIfTI kinds
        sizes_are_free = int(image.header["sform_code"]) > 0
        oriented = sizes_are_free or int(image.header["qform_code"]) > 0
    else:
        oriented = sizes_are_free = False
    if not sizes_are_free:
        # nibabel makes a size of 0 mm into 1 mm; we had better look at what the file says.
        sizes = (image.header if isinstance(image, nib.MGHImage) else
                 image.header_class(header[: image.header_class.template_dtype.itemsize], check=False)).get_zooms()[:3]
        if not all(math.isfinite(size) and size != 0 for size in sizes):
            raise UnusableScan(name, "voxel sizes above 0 mm", " x ".join(f"{size:g}" for size in sizes),
                               "Repair its header, or leave the scan out.")
    if not oriented:
        return None
    affine = np.asarray(image.affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or np.isnan(
            io_orientation(affine)).any():
        raise UnusableScan(name, "an orientation in its header", "a matrix that maps the volume to a plane or nowhere",
                           "Repair its header (sform), or leave the scan out.")
    return affine


def _mm_per_unit(image: nib.spatialimages.SpatialImage) -> float:
    return MM_PER_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0) if isinstance(image, nib.Nifti1Pair) else 1.0


def _finite(name: str, voxels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the voxels with 0 where they were not finite, and how many those were."""
    if voxels.dtype.kind != "f" or (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        return voxels, 0
    finite = np.isfinite(voxels)
    if not finite.any():
        raise UnusableScan(name, "a picture", "no finite value in any voxel", "Leave the scan out, or repair it.")
    return np.where(finite, voxels, voxels.dtype.type(0)), int(finite.size - np.count_nonzero(finite))


def _check_contrast(name: str, voxels: np.ndarray) -> None:
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise UnusableScan(name, "a picture", f"the same value, {low:g}, in every voxel",
                           "Leave the scan out, or copy it again.")
