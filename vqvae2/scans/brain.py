"""Volume -> where the brain is in it, and how bright.

Where the background is one number, mostly 0 (a stripped brain), the brain is everything else. Where a scan still
has skull and air around it, the head is the largest piece above Otsu's threshold [1]; what that
encloses in a plane belongs to it. Both are found plane by plane, in the order in which the file was
read, and statistics come from every n-th voxel, so no second copy of a volume is ever made.

[1] Otsu 1979, A threshold selection method from gray-level histograms, doi 10.1109/TSMC.1979.4310076.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from vqvae2.scans.headers import expect_usable
from vqvae2.scans.volumes import Volume

PERCENTILES = (0.5, 99.5)
VOXELS_FOR_STATISTICS = 500_000
DARKEST_OUTSIDE_OF_A_BRAIN = 0.12
"""Relative brightness of the outermost voxels: 0.28 and more in 56 stripped brains, 0.05 and less in heads in air."""
SMALLEST_PIECE = 0.05
"""Share of the largest piece of a stripped brain; what is smaller, such as a stray voxel, does not move the box."""
FEWER_LINES = 3
"""Every n-th line through a sample shows how bright its outside is."""
PLANES_FOR_PLATEAUS = 12
MOST_EQUAL_NEIGHBOURS = 0.6
"""Share; a volume with more is a label map, an atlas or a mask."""
MOST_NOT_FINITE = 0.01
"""Share of the brain that may be NaN or infinite."""


@dataclass(frozen=True)
class Brain:
    """The place of the brain (or of the head, if the skull was not removed) in a RAS volume, and its brightness."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    """The bounding box reaches from the first of these indices to the index before the second, on each axis."""
    low: float
    high: float
    """The values that become 0 and 1, in the scan's own units."""
    not_finite: int = 0
    """The number of voxels of the brain that were NaN or infinite."""
    head: "_Head | None" = None
    """None where the background is one number."""

    def around(self, shape: tuple[int, ...]) -> list[slice]:
        """Return the bounding box and one voxel around it, in a volume of this shape."""
        return [slice(max(0, first - 1), min(length, last + 1))
                for first, last, length in zip(self.start, self.stop, shape)]

    def inside(self, values: np.ndarray, part: tuple) -> np.ndarray:
        """Return where the brain is in a plane of the volume, as bool.

        Args:
            values: the values of the plane, from `Volume.scaled`, or at least those in the bounding box.
            part: where it is in the volume: an index for one axis, and slices with start and stop for two.
        """
        return values != 0 if self.head is None else _without_holes((values > self.head.threshold) & self.head.at(part))


@dataclass(frozen=True)
class _Head:
    """The largest piece above a threshold."""

    threshold: float | None
    """None for all that is not background."""
    step: int
    """`near` has every n-th voxel."""
    near: np.ndarray
    """bool: the piece, and one voxel of this coarse grid around it."""

    def at(self, part: tuple) -> np.ndarray:
        """Return `near` for every voxel of a plane."""
        first, second = (np.arange(each.start, each.stop) // self.step for each in part if isinstance(each, slice))
        coarse = self.near[tuple(slice(None) if isinstance(each, slice) else each // self.step for each in part)]
        return coarse[np.ix_(first, second)]


def find_brain(volume: Volume) -> Brain:
    """Return where the brain of a volume is.

    `low` and `high` are the 0.5th and 99.5th percentile inside. Where those are equal (more than 99 % of
    the brain has one value), `low` is 0 or the lowest value, and `high` the highest.
    Raises: UnusableScan if more than 1 % of the brain is NaN or infinite, or if there is next to no brain.
    """
    step = max(1, round((volume.voxels.size / VOXELS_FOR_STATISTICS) ** (1 / 3)))
    sparse = volume.voxels[::step, ::step, ::step]
    start, stop = _bounding_box(volume, None)
    sides = [last - first for first, last in zip(start, stop)]
    expect_usable(min(sides) >= 2, volume.name, "a brain of 2 voxels each way or more", " x ".join(map(str, sides)),
                  "Leave the scan out.")
    # The rest of the volume is 0. FEWER_LINES keeps the lines through the sample where they are in the volume.
    box = tuple(slice(first // step // FEWER_LINES * FEWER_LINES, (last - 1) // step + 1)
                for first, last in zip(start, stop))
    head, sample = None, volume.scaled(sparse[box])
    threshold = _threshold_of_air(volume, start, stop, sample, sparse)
    if threshold is None:
        inside, near = sample != 0, np.zeros(sparse.shape, bool)
        near[box] = _large_pieces(inside)
        start, stop = _box_of_what_is_large(volume, near, step, start, stop)
    else:
        sample = volume.scaled(sparse)
        pieces, _ = ndimage.label(sample > threshold)
        inside = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        head = _Head(threshold, step, _and_around(inside))
        # What the head encloses counts too: without skull, ventricles and the dark of the cortex, `low` would be
        # the threshold, and all of that black.
        inside = np.stack([_without_holes(plane) for plane in inside.transpose(2, 0, 1)], axis=2)
        start, stop = _bounding_box(volume, head)
    brain = Brain(start, stop, *_low_and_high(volume, sample[inside], start, stop), head=head)
    return brain if volume.not_finite is None else replace(brain, not_finite=_count_not_finite(volume, brain))


def share_of_equal_neighbours(volume: Volume, brain: Brain) -> float:
    """Return how many neighbours left and right inside the brain have the same stored number, 0…1, from a few planes.

    T1-weighted scans have at most 0.04, and 0.05 to 0.22 in 255 to 50 grey levels; label maps and masks have nearly 1.
    """
    box = volume.voxels[tuple(map(slice, brain.start, brain.stop))]
    planes = box[:, :, box.shape[2] // 3:box.shape[2] * 2 // 3 + 1:max(1, box.shape[2] // PLANES_FOR_PLATEAUS)]
    one, other = planes[1:], planes[:-1]
    inside = volume.is_not_background(one) & volume.is_not_background(other)
    return float((one == other)[inside].mean()) if inside.any() else 0.0


def _low_and_high(volume: Volume, sample: np.ndarray, start: tuple, stop: tuple) -> tuple[float, float]:
    if not sample.size:  # a brain so small that every n-th voxel misses it
        box = volume.scaled(volume.voxels[tuple(map(slice, start, stop))])
        sample = box[box != 0]
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = min(0.0, sample.min()), sample.max()
    return float(low), float(high if high > low else low + 1)


def _bounding_box(volume: Volume, head: _Head | None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the first index on each axis, and the index behind the last, of the head or of all but the background."""
    # In the order of the memory, forwards: numpy compares such planes five times faster than flipped ones.
    order = sorted(range(3), key=lambda axis: -abs(volume.voxels.strides[axis]))
    steps = [-1 if volume.voxels.strides[axis] < 0 else 1 for axis in range(3)]
    indices = [np.arange(length)[::step] for length, step in zip(volume.voxels.shape, steps)]
    planes = volume.voxels[tuple(slice(None, None, step) for step in steps)].transpose(order)
    hit, together = [], np.zeros(planes.shape[1:], bool)
    for number, plane in enumerate(planes):
        here = volume.is_not_background(plane)
        if head is not None:
            coarse = [indices[axis] // head.step for axis in order]
            bright = here if head.threshold is None else volume.scaled(plane) > head.threshold
            here = bright & head.near.transpose(order)[coarse[0][number]][
                np.ix_(*coarse[1:])]
        together |= here
        hit.append(here.any())
    lines = dict(zip(order, (np.array(hit), together.any(axis=1), together.any(axis=0))))
    expect_usable(together.any(), volume.name, "a brain", "nothing but background",
                  "Leave the scan out, or copy it again.")
    found = [indices[axis][lines[axis]] for axis in range(3)]
    return tuple(int(each.min()) for each in found), tuple(int(each.max()) + 1 for each in found)


def _large_pieces(inside: np.ndarray) -> np.ndarray:
    """Return a mask without its small pieces."""
    pieces, _ = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= SMALLEST_PIECE * max(1, sizes.max()))[pieces]


def _box_of_what_is_large(volume: Volume, large: np.ndarray, step: int, start: tuple, stop: tuple) -> tuple:
    """Return the box without stray voxels: that of the large pieces of a stripped brain, in every n-th voxel."""
    if not large.any():  # smaller than the grid of the sample
        return start, stop
    found = [np.flatnonzero(large.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    # As far as the voxels of the sample that are next to a large piece.
    if all(first >= (each[0] - 1) * step and last <= (each[-1] + 2) * step
           for first, last, each in zip(start, stop, found)):
        return start, stop
    return _bounding_box(volume, _Head(None, step, _and_around(large)))


def _and_around(inside: np.ndarray) -> np.ndarray:
    """Return a mask and one voxel around it, as scipy's binary_dilation with a cube does, which is slower."""
    for axis in range(3):
        along = np.moveaxis(inside, axis, 0)
        wider = along.copy()
        wider[1:] |= along[:-1]
        wider[:-1] |= along[1:]
        inside = np.moveaxis(wider, 0, axis)
    return inside


def _threshold_of_air(volume: Volume, start: tuple, stop: tuple, sample: np.ndarray,
                      sparse: np.ndarray) -> float | None:
    """Return Otsu's threshold if there is air around the head that is not exactly 0; None if it is 0.

    Air is dark, and fills the corners of the box around all that is not 0, or, where a scan was resampled and
    its corners are 0, at least the outside of what is not. Around a stripped brain the corners are 0, and its
    outermost voxels have a quarter of its brightness or more; a block cut out of a brain is bright in both.
    """
    edges = [max(1, (last - first) // 10) for first, last in zip(start, stop)]
    corners = [volume.voxels[corner] for corner in itertools.product(*(
        (slice(first, first + edge), slice(last - edge, last)) for first, last, edge in zip(start, stop, edges)))]
    if np.median([volume.is_not_background(corner).mean() for corner in corners]) > 0.05:
        threshold = otsu_threshold(volume.scaled(sparse))
        if np.median([(volume.scaled(corner) > threshold).mean() for corner in corners]) < 0.25:
            return threshold
    if _brightness_of_outside(sample) < DARKEST_OUTSIDE_OF_A_BRAIN:
        return otsu_threshold(volume.scaled(sparse))
    return None


def _brightness_of_outside(sample: np.ndarray) -> float:
    """Return how bright the outermost voxels that are not 0 are, relative to the bright half of all."""
    values = sample[sample != 0]
    if not values.size or -values[values < 0].sum() > 0.05 * np.abs(values).sum():
        return 1.0  # values about 0 do not tell dark from bright
    outermost = []
    for axis in range(3):
        for step in (1, -1):
            # These thousands of lines along the axis say the same as all.
            lines = sample[tuple(slice(None, None, step if each == axis else FEWER_LINES) for each in range(3))]
            first = np.take_along_axis(lines, np.expand_dims((lines != 0).argmax(axis), axis), axis)
            outermost.append(np.median(first[first != 0]) if first.any() else 0.0)
    return float(np.median(outermost) / values[values >= values.mean()].mean())


def otsu_threshold(values: np.ndarray) -> float:
    """Return the threshold between two classes of numbers (of any shape, at least one) whose means lie furthest apart,
    weighted by their sizes.

    256 bins from the lowest value to the 99.9th percentile, so that one bright vessel does not fill them.
    Source: Otsu 1979, equation 18.
    """
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    if high <= low:
        high = max(float(values.max()), low + 1)
    counts, edges = np.histogram(np.clip(values, low, high), bins=256, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    above, sum_above = counts.sum() - below, (counts * middles).sum() - sum_below
    between = below * above * (sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)) ** 2
    return float(edges[1 + between.argmax()])


def _count_not_finite(volume: Volume, brain: Brain) -> int:
    """Return how many voxels of the brain were not finite.

    SPM writes NaN outside of the brain: what hangs together with the outside of the brain's box is
    background. A piece within it is the brain's if it touches more brain than background.
    """
    box = tuple(brain.around(volume.voxels.shape))
    pieces, count = ndimage.label(volume.not_finite[box])
    if not count:
        return 0
    parts = [(*box[:2], index) for index in range(box[2].start, box[2].stop)]
    inside = np.stack([brain.inside(volume.scaled(volume.voxels[part]), part) for part in parts], axis=2)
    inside &= pieces == 0
    neighbours = ndimage.generate_binary_structure(3, 1).astype(np.uint8)
    touched_brain, touched_background = (
        np.bincount(pieces.ravel(), ndimage.correlate(matter.astype(np.uint8), neighbours, mode="constant").ravel())
        for matter in (inside, (pieces == 0) & ~inside))
    is_brain = (touched_brain >= touched_background) & (touched_brain > 0)
    for axis in range(3):
        is_brain[pieces.take([0, -1], axis)] = False
    is_brain[0] = False
    expect_usable(all(inside.any(axis=tuple({0, 1, 2} - {axis}))[1:-1].all() for axis in range(3)), volume.name,
                  "a brain without gaps", "whole planes of NaN or infinite numbers within it",
                  "Repair the scan, or leave it out.")
    lost = int(is_brain[pieces].sum())
    share = lost / (lost + int(inside.sum()))
    expect_usable(share <= MOST_NOT_FINITE, volume.name, f"at most {MOST_NOT_FINITE:.0%} of the brain NaN or infinite",
                  f"{share:.2%} ({lost} voxels)", "Repair the scan, or leave it out.")
    return lost


def _without_holes(inside: np.ndarray) -> np.ndarray:
    """Return a mask [first, second] and what it encloses: all but the outside that touches the border."""
    pieces, _ = ndimage.label(~inside)
    border = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    return ~np.isin(pieces, border[border > 0]) if border.any() else np.ones_like(inside)
