"""Where the planes of a scan lie in it <-> JSON values, by which decoded slices become a scan again.

A file has no mask of the brain: background is where slices, put back on the scan's grid, are nearly black, and which no
brain encloses.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt
from scipy import ndimage

from vqvae2.common.names import NORMAL
from vqvae2.evaluation.scan_maps import OpenScan
from vqvae2.scans.brain import Brain
from vqvae2.scans.headers import expect_bytes
from vqvae2.scans.nifti import Grid
from vqvae2.scans.volumes import Volume
from vqvae2.slices import planes

DARKEST = 0.08
"""Brightness of the darkest voxel of the brain. Of two people such a brain has 1.00 times the voxels of the real one,
and a Dice coefficient of 0.99 with it."""
MEANINGLESS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, nib.orientations.OrientationError,
               nib.spatialimages.HeaderDataError)
HEADERS = {kind.template_dtype.itemsize: kind for kind in (nib.Nifti1Header, nib.Nifti2Header)}


@dataclass(frozen=True)
class ScanGeometry:
    """These are the grid of a scan and the planes of it that are kept.

    Attributes:
        brain: its bounding box and brightness.
        shape, voxel_size_mm: of the volume in RAS order.
        plane: axial, coronal or sagittal.
        field_of_view: height and width of a slice in mm.
        indices: of the planes, along their normal.
    """

    grid: Grid = field(repr=False)
    brain: Brain
    shape: tuple[int, int, int]
    voxel_size_mm: tuple[float, float, float]
    plane: str
    field_of_view: float
    indices: Sequence[int]

    @classmethod
    def of(cls, opened: OpenScan, plane: str, field_of_view: float, indices: Sequence[int]) -> "ScanGeometry":
        """Return the geometry of a scan in memory."""
        return cls(opened.grid, opened.brain, opened.volume.voxels.shape, opened.volume.voxel_size_mm, plane,
                   field_of_view, list(indices))

    def as_json(self) -> dict:
        """Return JSON values."""
        grid, brain = self.grid, self.brain
        return {"header": grid.header.binaryblock.hex(), "orientation": grid.orientation, "slope": float(grid.slope),
                "inter": float(grid.inter), "background": float(grid.background),
                "start": [int(at) for at in brain.start], "stop": [int(at) for at in brain.stop],
                "low": float(brain.low), "high": float(brain.high), "shape": [int(side) for side in self.shape],
                "voxel_size_mm": [float(side) for side in self.voxel_size_mm], "plane": self.plane,
                "field_of_view": float(self.field_of_view), "indices": [int(index) for index in self.indices]}

    @classmethod
    def from_json(cls, said: dict) -> "ScanGeometry":
        """Return the geometry that `as_json` has written. Raises: one of MEANINGLESS for other values."""
        header = bytes.fromhex(said["header"])
        slope, inter, background, low, high, field_of_view = (float(said[name]) for name in (
            "slope", "inter", "background", "low", "high", "field_of_view"))
        start, stop, shape, indices = (tuple(map(int, said[name])) for name in ("start", "stop", "shape", "indices"))
        grid = Grid(HEADERS[len(header)](header, check=False), str(said["orientation"]), slope, inter, background)
        found = cls(grid, Brain(start, stop, low, high), shape, tuple(map(float, said["voxel_size_mm"])),
                    str(said["plane"]), field_of_view, indices)
        axes = axcodes2ornt(tuple(grid.orientation))
        is_whole = axes.shape == (3, 2) and shape == tuple(np.array(grid.shape)[axes[:, 0].argsort()].tolist())
        boxes = all(0 <= first < last <= side for first, last, side in zip(start, stop, shape, strict=True))
        along = shape[NORMAL[found.plane]]
        if not (is_whole and boxes and min(found.voxel_size_mm) > 0 < field_of_view and grid.number_type.kind in "iuf"
                and all(0 <= index < along for index in indices) and slope):
            raise ValueError("planes outside of the volume, or numbers that mean nothing")
        return found

    def write(self, path: Path, slices: Iterable[np.ndarray | None]) -> None:
        """Write the scan as .nii.gz, of its slices `[size, size]` in 0…1; None where one is lost.

        Raises: UserError if the file cannot be written; UnusableScan if there is no room for the scan.
        """
        brain, axis = self.brain, NORMAL[self.plane]
        # Of a volume only shape and voxel size are asked for.
        volume = Volume(np.broadcast_to(np.uint8(0), self.shape), self.voxel_size_mm)
        box = tuple(brain.around(self.shape))
        sides = [side.stop - side.start for side in box]
        expect_bytes(path.name, math.prod(self.shape) * self.grid.number_type.itemsize, "its voxels")
        stored = np.full(sides, self.grid.background, self.grid.number_type)
        along = np.moveaxis(stored, axis, 0)
        for index, image in zip(self.indices, slices):
            if image is not None:
                values, within = planes.put_map_back(image, volume, brain, axis, self.field_of_view)
                known = within & ndimage.binary_fill_holes(values >= DARKEST)
                along[index - box[axis].start][known] = self.grid.stored(
                    brain.low + values[known] * (brain.high - brain.low))
        self.grid.write(path, box, stored)
