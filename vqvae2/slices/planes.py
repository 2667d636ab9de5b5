"""A volume and its brain -> planes, 0…1, on square pixels, and their PNGs.

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
from typing import Literal

import numpy as np
from PIL import Image
from scipy import sparse

from vqvae2.scans.brain import Brain
from vqvae2.scans.volumes import Volume

RECIPE = 3
"""Raised whenever this module, brain.py, volumes.py or headers.py draws other pixels from equal scans and settings."""
DARKEST_BRAIN = 1 / 255


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
    part = brain.around(volume.voxels.shape)  # all else is 0
    across, up = (resampling_matrix(part[a].stop - part[a].start, volume.voxel_size_mm[a],
                                    (brain.start[a] + brain.stop[a]) / 2 - part[a].start, size, field_of_view / size)
                  for a in range(3) if a != axis)
    part[axis] = index
    values = volume.scaled(volume.voxels[tuple(part)])
    inside = brain.inside(values, part)
    values -= brain.low
    values /= brain.high - brain.low
    np.clip(values, DARKEST_BRAIN, 1.0, out=values)
    values *= inside
    # Rows of `drawn` grow towards A or S and its columns towards R (A for a sagittal plane): both are turned round.
    drawn = across @ np.ascontiguousarray((up @ np.ascontiguousarray(values.T)).T)
    return drawn.T[::-1, ::-1]


@functools.lru_cache(maxsize=6)  # the planes of a scan share theirs; nobody may change one
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


def encode_png(image: np.ndarray, bits: int) -> bytes:
    """Return the PNG of a picture [height, width] in 0…1 with 8 or 16 bits; no time or software is in it."""
    levels = np.rint(image * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    content = io.BytesIO()
    Image.fromarray(levels).save(content, format="PNG", compress_level=6)
    return content.getvalue()
