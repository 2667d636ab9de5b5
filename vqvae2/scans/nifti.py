"""A scan and values for its voxels -> a NIfTI file on the scan's own grid.

A NIfTI scan's header is copied byte for byte, in its own byte order: shape, sform and qform with their codes, zooms,
units, data type, scale factors, and all else, whatever this project corrects when it reads. Only these bytes change:

- `magic` and `vox_offset`, where the scan is a pair or its voxels do not begin right behind the header: what is written
  is one file;
- `dim`, where one volume of a series was taken;
- in a map of another number type: the type, the scale factors (none) and the range of display (unset).

Extensions of the header are left out. They may hold anything, such as a DICOM header with a name in it.

Analyze, MGH and DICOM have no such header. They get a new one of NIfTI-1 with the matrix that this project uses, as
sform and qform. Where only the archive's layout, Analyze's byte or the user says how the indices lie, no place is
known: the middle of the volume is 0.

NOTE nibabel's images are not written with, since they change headers: a matrix set anew is rounded into a quaternion,
codes become 2 and 0, and scale factors are chosen again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from vqvae2.common import files
from vqvae2.scans.headers import image_class, parse_header
from vqvae2.scans.volumes import Volume, beginning_of, files_of, read_image, reader_of

try:
    from isal.igzip import IGzipFile as GzipFile
except ImportError:
    from gzip import GzipFile

LEVEL = 1
"""How hard gzip tries: higher levels take longer for a few hundredths of the size."""
SINGLE_FILE = {nib.Nifti1Image: nib.Nifti1Header, nib.Nifti1Pair: nib.Nifti1Header, nib.Nifti2Image: nib.Nifti2Header,
               nib.Nifti2Pair: nib.Nifti2Header}
RAS = axcodes2ornt("RAS")
SCANNER, ALIGNED = 1, 2
"""NIfTI's codes of a matrix that leads to the scanner's millimetres, and to those of some other place."""
MEANING = ("scl_inter", "cal_min", "cal_max", "intent_code")
"""Fields that say what a scan's numbers mean, and nothing about a map."""


@dataclass(frozen=True)
class Grid:
    """This is how a scan lies in its file, and how numbers are stored there."""

    header: nib.Nifti1Header = field(repr=False)
    """The header of a single file."""
    orientation: str
    """The directions that the file's own three indices grow towards, such as LAS."""
    slope: float
    inter: float
    background: float
    """The stored number of the background."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the lengths of the file's three axes."""
        return tuple(map(int, self.header["dim"][1:4]))

    @property
    def number_type(self) -> np.dtype:
        """Return the type of a voxel, in the byte order of the file."""
        return self.header.get_data_dtype()

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Return values in the scan's own units as the file stores them: clipped to what its type holds, and rounded
        where it holds integers."""
        kind, numbers = self.number_type, (values - self.inter) / self.slope
        is_whole = kind.kind in "iu"
        limits = np.iinfo(kind) if is_whole else np.finfo(kind)
        most = float(limits.max)
        if is_whole and most > limits.max:  # of 64 bits, whose largest is no float64
            most = np.nextafter(most, 0)
        return np.clip(np.rint(numbers) if is_whole else numbers, limits.min, most).astype(kind)

    def in_file_order(self, ras: np.ndarray) -> np.ndarray:
        """Return a view of an array in RAS order, of the volume or of a part, as the file's indices run."""
        return apply_orientation(ras, ornt_transform(RAS, axcodes2ornt(tuple(self.orientation))))

    def write(self, path: Path, part: tuple[slice, ...], ras: np.ndarray, background: float | None = None) -> None:
        """Write a .nii.gz, whole or not at all. Equal numbers give equal bytes: neither a time nor a name is in it.

        Args:
            path: the file.
            part: the part of the RAS volume that is known, as slices with start and stop.
            ras: its stored numbers, in RAS order and in the scan's own type; or, with `background`, a map's numbers, in
                whose type the file is.
            background: the number everywhere else; without it, that of the scan.
        Raises: UserError if the file cannot be written.
        """
        header = self.header
        if background is not None:
            header = header.copy()
            header.set_data_dtype(ras.dtype)
            header["scl_slope"] = 1
            for name in MEANING:
                header[name] = 0
        numbers, (first, second, third) = self.in_file_order(ras), self._in_file_order(part)

        def slabs() -> Iterator[np.ndarray]:
            for index in range(self.shape[2]):
                slab = np.full(self.shape[:2], self.background if background is None else background,
                               header.get_data_dtype(), order="F")
                if third.start <= index < third.stop:
                    slab[first, second] = numbers[:, :, index - third.start]
                yield slab.reshape(-1, order="F").view(np.uint8)

        def pack(temporary: Path) -> None:
            with temporary.open("wb") as file, GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=file,
                                                        mtime=0) as packed:
                packed.write(header.binaryblock + bytes(4))  # no extension follows
                for slab in slabs():
                    packed.write(slab.data)
        files.write_atomically(path, pack)

    def _in_file_order(self, part: tuple[slice, ...]) -> list[slice]:
        found = []
        for (axis, direction), length in zip(axcodes2ornt(tuple(self.orientation)).astype(int), self.shape):
            box = part[axis]
            found.append(slice(box.start, box.stop) if direction > 0 else slice(length - box.stop, length - box.start))
        return found


def grid_of(path: Path, volume: Volume) -> Grid:
    """Return the grid of the scan that `volumes.read_volume` has read from `path`.

    Raises: UnusableScan if its header cannot be read any more.
    """
    header, slope, inter = None, volume.slope, volume.inter
    if reader_of(path) is read_image:
        beginning = beginning_of(files_of(path)[0], path)
        if (kind := SINGLE_FILE.get(image_class(path, beginning))) is not None:
            header = kind(beginning[:kind.template_dtype.itemsize], check=False)
            header["magic"], header["vox_offset"] = kind.single_magic, kind.single_vox_offset
            if volume.number is not None:
                header["dim"][0], header["dim"][4:] = 3, 1
            said = parse_header(path, beginning)
            slope, inter = said.slope, said.inter
    grid = Grid(_new_header(volume) if header is None else header, volume.orientation, slope, inter, 0)
    is_stored = volume.background is not None and (volume.slope, volume.inter) == (slope, inter)
    return replace(grid, background=volume.background if is_stored else grid.stored(np.zeros(1))[0].item())


def _new_header(volume: Volume) -> nib.Nifti1Header:
    axes = axcodes2ornt(tuple(volume.orientation))
    shape = np.array(volume.voxels.shape)[axes[:, 0].astype(int)]
    ras, code = volume.affine, SCANNER
    if ras is None:
        ras, code = np.diag([*volume.voxel_size_mm, 1.0]), ALIGNED
        ras[:3, 3] = -(np.array(volume.voxels.shape) - 1) / 2 * volume.voxel_size_mm
    affine = ras @ np.linalg.inv(inv_ornt_aff(axes, shape))
    header = nib.Nifti1Header()
    header.set_data_dtype(volume.voxels.dtype.newbyteorder("="))
    header.set_data_shape(shape)
    header.set_qform(affine, code, strip_shears=True)
    header.set_sform(affine, code)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = volume.slope, volume.inter
    header["vox_offset"] = header.single_vox_offset
    return header
