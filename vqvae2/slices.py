"""Volume -> planes, 0…1 -> PNGs and manifest, split by subject.

1. The brain is found: where the background is exactly 0 it is everything else, and where the scan
   still has skull and air, the largest piece above Otsu's threshold [1], without holes.
2. Planes are chosen by a fraction of the brain's bounding box; the nearest plane is taken, never a
   mix of two.
3. Its values go from the brain's robust percentiles to 0…1. A voxel of the brain is at least
   1/255, so that it stays apart from the background, which is exactly 0.
4. The plane is drawn on square pixels of field_of_view / size mm, centred on the brain's bounding
   box: two sparse matrices, one for each axis, that average areas when shrinking and interpolate
   linearly when enlarging. Radiological display: the subject's left is at the picture's right.

Sparse products add in a fixed order, so the bytes do not depend on threads or number of processes.

[1] Otsu 1979, A threshold selection method from gray-level histograms, doi 10.1109/TSMC.1979.4310076.
"""

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage, sparse

from vqvae2.config import SPLITS, ExtractSettings
from vqvae2.errors import UserError
from vqvae2.scans import Scan
from vqvae2.volumes import Volume, read_file, to_volume

RECIPE = 1
"""Raised whenever this module or volumes.py draws other pixels from equal scans and settings."""
SETTINGS_OF_PIXELS = ("planes", "per_scan", "extent", "size", "field_of_view", "bits", "assume_orientation")
MANIFEST_COLUMNS = ("image", "split", "subject", "session", "scan", "plane", "index", "position_mm", "low", "high",
                    "sha256", "orientation", "nan_voxels", "age", "sex", "scan_sha256")
NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of a RAS volume that a plane is perpendicular to."""
PERCENTILES = (0.5, 99.5)
DARKEST_BRAIN = 1 / 255
VOXELS_FOR_STATISTICS = 2_000_000
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Brain:
    """Where the brain is in a RAS volume, and how bright it is."""

    inside: np.ndarray
    """bool [right, anterior, superior]."""
    has_holes: bool
    """True where the mask came from a threshold: what it encloses in a plane belongs to the brain too."""
    start: tuple[int, int, int]
    """First index of the bounding box on each axis."""
    stop: tuple[int, int, int]
    """Index behind its last one."""
    low: float
    """What becomes 0, in the scan's own units."""
    high: float
    """What becomes 1."""


def find_brain(voxels: np.ndarray) -> Brain:
    """Return the brain (the head, where the skull was not removed) of a RAS volume [right, anterior, superior].

    `low` and `high` are the 0.5th and 99.5th percentile inside. Where those are equal (more than 99 %
    of the brain has one value), `low` is 0 or the lowest value, and `high` the highest.
    """
    inside = voxels != 0
    start, stop = _bounding_box(inside)
    threshold = _threshold_of_air(voxels, voxels[tuple(map(slice, start, stop))])
    if threshold is not None:
        pieces, _ = ndimage.label(voxels > threshold)
        inside = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        start, stop = _bounding_box(inside)
    sample = _thinned(voxels)[_thinned(inside)].astype(np.float64)
    if not sample.size:  # a brain so small that thinning misses it
        sample = voxels[inside].astype(np.float64)
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = min(0.0, sample.min()), sample.max()
    return Brain(inside, threshold is not None, start, stop, float(low), float(high) if high > low else float(low + 1))


def plane_indices(brain: Brain, axis: int, per_scan: int, extent: tuple[float, float]) -> list[int]:
    """Return the RAS indices of `per_scan` planes: the middles of equal parts of the extent, so 1 is its centre.

    `extent` is in fractions of the brain's bounding box along `axis`. Fewer are returned where the
    scan has fewer planes there.
    """
    start, stop = brain.start[axis], brain.stop[axis]
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
        brain: of that scan, from `find_brain`.
        axis: the plane's normal, 0 (sagittal), 1 (coronal) or 2 (axial).
        index: the plane, on that axis.
        size: height and width in pixels.
        field_of_view: height and width in mm; what lies beyond it is cut off.
    """
    plane = (slice(None),) * axis + (index,)  # not take(), which copies the whole volume first
    values, inside = volume.voxels[plane].astype(np.float64), brain.inside[plane]
    if brain.has_holes:
        inside = _without_holes(inside)
    values = np.clip((values - brain.low) / (brain.high - brain.low), DARKEST_BRAIN, 1.0)
    values[~inside] = 0.0
    across, up = (resampling_matrix(values.shape[i], volume.voxel_size_mm[a], (brain.start[a] + brain.stop[a]) / 2,
                                    size, field_of_view / size)
                  for i, a in enumerate(a for a in range(3) if a != axis))
    # Rows of `drawn` grow towards A or S and its columns towards R (A for a sagittal plane): both are turned round.
    drawn = up @ np.ascontiguousarray((across @ np.ascontiguousarray(values)).T)
    return np.ascontiguousarray(drawn[::-1, ::-1])


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


def extract_scan(scan: Scan, settings: ExtractSettings, out: Path, split: str,
                 known: list[dict] | None) -> tuple[list[dict], bool]:
    """Write one scan's PNGs to `<out>/<split>/`; return their rows, and whether they were all there already.

    Args:
        scan: from `scans.find_scans`.
        settings: of the run.
        out: the folder of the slices.
        split: where new images go.
        known: rows of this scan from an earlier run with the same pixel settings. If the scan has not
            changed since and each image is still what it was, they are returned and nothing is written.
    A row has the manifest's columns, without `split`, `age` and `sex`, which are decided later.
    Raises: UnusableScan, before anything is written; UserError if `out` cannot be written.
    """
    file = read_file(scan.path)
    if known and all(row["scan_sha256"] == file.sha256 and _is_there(out, row) for row in known):
        return known, True
    storage = scan.storage or settings.assume_orientation
    volume = to_volume(file, storage)
    brain = find_brain(volume.voxels)
    rows = []
    for plane in settings.planes:
        axis = NORMAL[plane]
        for index in plane_indices(brain, axis, settings.per_scan, settings.extent):
            image = draw_plane(volume, brain, axis, index, settings.size, settings.field_of_view)
            content = encode_png(image, settings.bits)
            name = f"{split}/{scan.prefix}_{plane}{index:03d}.png"
            write(out / name, content, synced=False)
            rows.append({
                "image": name, "subject": scan.subject, "session": scan.session, "scan": scan.name, "plane": plane,
                "index": str(index), "low": f"{brain.low:.6g}", "high": f"{brain.high:.6g}",
                # + 0.0 turns -0.0 into 0.0
                "position_mm": f"{round(position_mm(brain, axis, index, volume.voxel_size_mm[axis]), 3) + 0.0:.3f}",
                "sha256": hashlib.sha256(content).hexdigest(), "orientation": volume.orientation,
                "nan_voxels": str(volume.nan_voxels), "scan_sha256": file.sha256})
    return rows, False


def write(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Write a file so that it is there whole or not at all.

    Raises: UserError if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--out {path.parent}: expected a folder that can be written, found "
                        f"{(error.strerror or str(error)).lower()}. Make room, or name another folder; running "
                        "again goes on from here.") from None


def csv_bytes(columns: Iterable[str], rows: Iterable[dict]) -> bytes:
    """Return a table with one header line, lines ending in a newline on every system."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def subject_number(subject: str, seed: int) -> float:
    """Return the subject's own number in [0, 1), the same in every set of subjects."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def own_split(subject: str, shares: tuple[float, float, float], seed: int) -> str:
    """Return the split that the subject's number lies in, whoever else is there."""
    number = subject_number(subject, seed)
    return next(split for split, (_, end) in _intervals(shares).items() if number < end)


def split_subjects(subjects: Iterable[str], shares: tuple[float, float, float],
                   seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return each subject's split, and of those lent to a split that would be empty the split they came from.

    Adding subjects moves nobody, except back those who were lent. A split of share 0 stays empty; train
    is filled first, and no other split takes a split's last subject. Lent is whose number lies nearest.
    """
    splits = {subject: own_split(subject, shares, seed) for subject in sorted(set(subjects))}
    lent: dict[str, str] = {}
    for split, (start, end) in _intervals(shares).items():
        if start == end or split in splits.values():
            continue
        members = {name: [subject for subject in splits if splits[subject] == name] for name in SPLITS}
        donors = [subject for subject in splits
                  if subject not in lent and (split == "train" or len(members[splits[subject]]) > 1)]
        if donors:
            numbers = {subject: subject_number(subject, seed) for subject in donors}
            nearest = min(donors, key=lambda subject: (max(start - numbers[subject], numbers[subject] - end), subject))
            lent[nearest], splits[nearest] = splits[nearest], split
    return splits, lent


def _intervals(shares: tuple[float, float, float]) -> dict[str, tuple[float, float]]:
    """The part of [0, 1) that belongs to each split; the last that has a share ends at 1 exactly."""
    ends = [total / sum(shares) for total in itertools.accumulate(shares)]
    ends = [1.0 if abs(end - 1) < 1e-12 else end for end in ends]
    return {split: (start, end) for split, start, end in zip(SPLITS, [0.0, *ends], ends)}


def _bounding_box(inside: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First index, and the one behind the last, of what is True, on each axis."""
    plane = inside.any(axis=2)
    lines = [np.flatnonzero(line) for line in (plane.any(axis=1), plane.any(axis=0), inside.any(axis=(0, 1)))]
    start, stop = zip(*((int(line[0]), int(line[-1]) + 1) for line in lines))
    return start, stop


def _threshold_of_air(voxels: np.ndarray, box: np.ndarray) -> float | None:
    """Return Otsu's threshold if there is air around the head that is not exactly 0; None if it is 0.

    Air fills the corners of `box`, which is around all that is not 0, and is dark. Around a stripped
    brain they are 0; in a block that is cut out of a brain they are bright.
    """
    threshold = otsu_threshold(_thinned(voxels))
    blocks = [box[corner] for corner in itertools.product(*((slice(0, edge), slice(length - edge, None))
              for length, edge in ((length, max(1, length // 10)) for length in box.shape)))]
    not_zero = np.median([np.count_nonzero(block) / block.size for block in blocks])
    bright = np.median([np.count_nonzero(block > threshold) / block.size for block in blocks])
    return threshold if not_zero > 0.05 and bright < 0.05 else None


def otsu_threshold(values: np.ndarray) -> float:
    """Return the threshold between two classes whose means lie furthest apart, weighted by their sizes.

    256 bins from the lowest value to the 99.9th percentile, so that one bright vessel does not fill them.
    Source: Otsu 1979, equation 18.
    """
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    if high <= low:
        high = max(float(values.max()), low + 1)
    counts, edges = np.histogram(np.clip(values, low, high).astype(np.float64), bins=256, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    above, sum_above = counts.sum() - below, (counts * middles).sum() - sum_below
    between = below * above * (sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)) ** 2
    return float(edges[1 + between.argmax()])


def _thinned(values: np.ndarray) -> np.ndarray:
    """Every n-th voxel along each axis, so that about 2 million are left."""
    step = max(1, round((values.size / VOXELS_FOR_STATISTICS) ** (1 / 3)))
    return values[::step, ::step, ::step]


def _without_holes(inside: np.ndarray) -> np.ndarray:
    """The mask [first, second] and what it encloses: all but the outside that touches the border."""
    pieces, _ = ndimage.label(~inside)
    border = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    return ~np.isin(pieces, border[border > 0]) if border.any() else np.ones_like(inside)


def _is_there(out: Path, row: dict) -> bool:
    try:
        return hashlib.sha256((out / row["image"]).read_bytes()).hexdigest() == row["sha256"]
    except OSError:
        return False


