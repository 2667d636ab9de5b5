"""A volume and its brain -> planes, 0…1, on square pixels, and their PNGs; and such a plane -> its voxels again.

1. Planes are chosen by a fraction of the brain's bounding box; the nearest plane is taken, never a
   mix of two.
2. Its values go from the brain's robust percentiles to 0…1. A voxel of the brain is at least
   1/255, so that it stays apart from the background, which is exactly 0.
3. The plane is drawn on square pixels of field_of_view / size mm, centred on the brain's bounding
   box: two sparse matrices, one for each axis, that average areas when shrinking and interpolate
   linearly when enlarging. Radiological display: the subject's left is at the picture's right.

Sparse products add in a fixed order, so the bytes do not depend on threads or number of processes."""

import functools
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from scipy import sparse

from vqvae2.scans.brain import Brain
from vqvae2.scans.volumes import Volume

RECIPE = 3
"""Raised whenever this module, brain.py, volumes.py or headers.py draws other pixels from equal scans and settings."""
DARKEST_BRAIN = 1 / 255
LEAST_SHARE = 1e-6
"""Where the pixels of a voxel have a smaller share of brain, nothing is known of the voxel."""


def plane_indices(brain: Brain, axis: int, per_scan: int | Literal["all"], extent: tuple[float, float]) -> list[int]:
    """Return the RAS indices of `per_scan` planes: the middles of equal parts of the extent, so 1 is its centre.

    `extent` is in fractions of the brain's bounding box along `axis`. Fewer are returned where the
    scan has fewer planes there; "all" stands for all of them.
    """
    start, stop = brain.start[axis], brain.stop[axis]
    per_scan = stop - start if per_scan == "all" else per_scan  # parts that are no thicker than a plane miss none
    parts = (np.arange(per_scan) + 0.5) / per_scan
    edges = start + (extent[0] + parts * (extent[1] - extent[0])) * (stop - start)
    # Voxel i reaches from edge i to edge i + 1; 1e-6 keeps rounding from choosing at a tie.
    return sorted({int(index) for index in np.clip(np.floor(edges + 1e-6), start, stop - 1)})


def position_mm(brain: Brain, axis: int, index: int, voxel_size_mm: float) -> float:
    """Return the plane's place along its normal from the centre of the bounding box; positive is R, A or S."""
    return (index + 0.5 - (brain.start[axis] + brain.stop[axis]) / 2) * voxel_size_mm


def draw_plane(volume: Volume, brain: Brain, axis: int, index: int, size: int, field_of_view: float) -> np.ndarray:
    """Return one plane as float64 [size, size], 0…1, in radiological display, anterior or superior up.

    Args:
        volume: the scan.
        brain: where the brain of that scan is, from `find_brain`.
        axis: the plane's normal, 0 (sagittal), 1 (coronal) or 2 (axial).
        index: the plane, on that axis.
        size: height and width in pixels.
        field_of_view: height and width in mm; what lies beyond it is cut off.
    """
    return picture_of(plane_of(volume, brain, axis, index), volume, brain, axis, size, field_of_view)


def picture_of(plane: "BrainPlane", volume: Volume, brain: Brain, axis: int, size: int,
               field_of_view: float) -> np.ndarray:
    """Return what `draw_plane` draws of a plane that was read already. Arguments as there."""
    return _displayed(*_weights(volume, brain, axis, size, field_of_view), plane.brightness)


@dataclass(frozen=True)
class BrainPlane:
    """The voxels of one plane, in the brain's box and one voxel around it (`Brain.around`)."""

    part: tuple[slice | int, ...]
    """Where they are in the RAS volume: an index for the plane's normal, slices for the other two axes."""
    brightness: np.ndarray
    """float64 `[first axis, second axis]`: 0 where there is no brain, DARKEST_BRAIN…1 in it."""
    inside: np.ndarray
    """bool of that shape: where the brain is."""


def plane_of(volume: Volume, brain: Brain, axis: int, index: int) -> BrainPlane:
    """Return the voxels that `draw_plane` draws. Arguments as for `draw_plane`."""
    part = brain.around(volume.voxels.shape)  # all else is 0
    part[axis] = index
    values = volume.scaled(volume.voxels[tuple(part)])
    inside = brain.inside(values, part)
    values -= brain.low
    values /= brain.high - brain.low
    np.clip(values, DARKEST_BRAIN, 1.0, out=values)
    values *= inside
    return BrainPlane(tuple(part), values, inside)


def put_back(image: np.ndarray, volume: Volume, brain: Brain, axis: int, plane: BrainPlane,
             field_of_view: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the brightness `[first axis, second axis]` of the voxels of a plane, from a picture of it, and where there
    is one, as bool: in the brain and within the field of view. Elsewhere it is 0.

    It is `draw_plane` the other way round: areas are averaged where voxels are larger than pixels, and pixels are
    interpolated linearly where voxels are smaller. A pixel at the edge of the brain is dark because a part of it is
    background: a pixel counts as much as it has brain in it, and what it lacks is made up for.

    Args:
        image: `[size, size]`, as `draw_plane` returns it, or what a model has made of it.
        plane: from `plane_of`, the plane that was drawn. Other arguments as for `draw_plane`.
    """
    size = len(image)
    drawing, back = (_weights(volume, brain, axis, size, field_of_view, back=each) for each in (False, True))
    share = _voxels_of(_displayed(*drawing, plane.inside.astype(np.float64)), *back)
    known = plane.inside & _within(back) & (share > LEAST_SHARE)
    found = np.divide(_voxels_of(image, *back), share, out=np.zeros_like(share), where=known)
    return np.clip(found, DARKEST_BRAIN, 1.0, out=found) * known, known


def put_map_back(values: np.ndarray, volume: Volume, brain: Brain, axis: int, field_of_view: float, *,
                 nearest: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return a map of anything but brightness on the voxels of any plane of an axis, and which of them lie within the
    field of view, as bool; elsewhere it is 0.

    Args:
        values: `[height, width]` over the whole field of view, of any resolution: a code map has a few cells.
        nearest: take each voxel's value from the pixel in which its middle lies, as codes need it; else average or
            interpolate as `put_back` does. Other arguments as for `draw_plane`.
    """
    size = len(values)
    back = _weights(volume, brain, axis, size, field_of_view, back=True)
    within = _within(back)
    if nearest:
        columns, rows = (np.clip(size / 2 + (np.arange(voxels) + 0.5 - centre) * voxel_mm * size / field_of_view, 0,
                                 size - 1).astype(int) for voxels, voxel_mm, centre in _axes(volume, brain, axis))
        return np.where(within, values[::-1, ::-1].T[np.ix_(columns, rows)], 0), within
    sums = np.outer(*(each.sum(1) for each in back))
    return np.divide(_voxels_of(values, *back), sums, out=np.zeros_like(sums), where=within), within


def _axes(volume: Volume, brain: Brain, axis: int) -> list[tuple[int, float, float]]:
    """Return the two axes of a plane: the voxels of the brain's box, their size, and the middle of the brain in voxels.
    """
    around = brain.around(volume.voxels.shape)
    return [(around[other].stop - around[other].start, volume.voxel_size_mm[other],
             (brain.start[other] + brain.stop[other]) / 2 - around[other].start) for other in range(3) if other != axis]


def _weights(volume: Volume, brain: Brain, axis: int, size: int, field_of_view: float, *,
             back: bool = False) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Return the weights of the two axes of a plane that turn its voxels into pixels or, `back`, pixels into voxels."""
    pixel_mm = field_of_view / size
    return tuple(resampling_matrix(size, pixel_mm, size / 2 + (voxels / 2 - centre) * voxel_mm / pixel_mm, voxels,
                                   voxel_mm) if back else
                 resampling_matrix(voxels, voxel_mm, centre, size, pixel_mm)
                 for voxels, voxel_mm, centre in _axes(volume, brain, axis))


def _within(back: tuple[sparse.csr_array, sparse.csr_array]) -> np.ndarray:
    """Return which voxels of a plane lie within the field of view by half or more."""
    return np.outer(*(each.sum(1) >= 0.5 for each in back))


def _displayed(across: sparse.csr_array, up: sparse.csr_array, values: np.ndarray) -> np.ndarray:
    # Rows of `drawn` grow towards A or S and its columns towards R (A for a sagittal plane): both are turned round.
    drawn = across @ np.ascontiguousarray((up @ np.ascontiguousarray(values.T)).T)
    return drawn.T[::-1, ::-1]


def _voxels_of(image: np.ndarray, across: sparse.csr_array, up: sparse.csr_array) -> np.ndarray:
    return across @ np.ascontiguousarray((up @ np.ascontiguousarray(image[::-1, ::-1])).T)


@functools.lru_cache(maxsize=32)  # the planes of a scan share theirs; nobody may change one
def resampling_matrix(voxels: int, voxel_mm: float, centre: float, pixels: int, pixel_mm: float) -> sparse.csr_array:
    """Return the weights [pixels, voxels] that draw one axis; outside of the volume is 0.

    Voxel i reaches from i to i + 1 voxel sizes, pixel k likewise, and the middle of the pixels lies on
    `centre` (in voxels, from the edge of the first). Pixels that are not smaller than voxels average
    what they cover, weighted by overlap; smaller ones interpolate linearly between voxel centres.
    """
    left = centre + (np.arange(pixels) - pixels / 2) * pixel_mm / voxel_mm
    right = left + pixel_mm / voxel_mm
    if pixel_mm >= voxel_mm * (1 - 1e-9):
        index = np.arange(voxels)
        overlap = np.minimum(right[:, None], index + 1) - np.maximum(left[:, None], index)
        return sparse.csr_array(np.where(overlap > 1e-9, overlap, 0.0) * voxel_mm / pixel_mm)
    middle = (left + right) / 2
    rows = np.flatnonzero((middle > 0) & (middle < voxels))
    place = middle[rows] - 0.5
    below, part = np.floor(place), place - np.floor(place)
    columns = np.clip(np.concatenate([below, below + 1]), 0, voxels - 1).astype(int)
    return sparse.coo_array((np.concatenate([1 - part, part]), (np.concatenate([rows, rows]), columns)),
                            shape=(pixels, voxels)).tocsr()


def levels_of(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the grey levels, of 8 or 16 bits, that a picture [height, width] in 0…1 has in its PNG."""
    levels = image * (2**bits - 1)
    return np.rint(levels, out=levels).astype(np.uint8 if bits == 8 else np.uint16)


def png_of(levels: np.ndarray) -> bytes:
    """Return the PNG of grey levels [height, width] from `levels_of`; no time or software is in it."""
    content = io.BytesIO()
    Image.fromarray(levels).save(content, format="PNG", compress_level=6)
    return content.getvalue()


def encode_png(image: np.ndarray, bits: int) -> bytes:
    """Return the PNG of a picture [height, width] in 0…1 with 8 or 16 bits."""
    return png_of(levels_of(image, bits))
