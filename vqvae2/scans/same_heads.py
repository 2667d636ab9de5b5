"""Volumes -> pairs of scans that are likely of one person under two names.

1. A head becomes a coarse grid, 24 x 24 x 24 cells of 8 mm around the brain's centre. A cell holds the mean rank of its
   voxels' brightness among those of the brain, and 0 outside, so that another scale or a rising curve of brightness
   changes little.
2. Each grid is laid over the mean of many grids by an affine map, with the inverse compositional algorithm [1]: a head
   that lies turned in the scanner, or that another program has scaled, then lies as all others do.
3. What is smooth over 8 mm, and alike in all people, is taken away. What is left are ventricles, fissures and large
   sulci; the correlation of two grids tells whether they are of one person.

[1] Baker and Matthews 2004, Lucas-Kanade 20 years on, doi 10.1023/B:VISI.0000011205.11775.fd, section 3.2.
"""

import base64
import contextlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from vqvae2.common.progress import Bar
from vqvae2.scans.brain import Brain
from vqvae2.scans.volumes import Volume

CELLS, CELL_MM = 24, 8.0
SAMPLE_MM = 3.0
"""Voxels are looked at about this far apart."""
MOST_SAMPLED = 4_000_000
"""Voxels; no box around a real head has more of them so far apart."""
FEWER_FOR_RANKS = 8
"""Every n-th of these voxels gives the ranks."""
CELLS_TO_ALIGN = 16
"""A side of the grid, of 12 mm, on which heads are laid over each other."""
STEPS_TO_ALIGN, ROUNDS_OF_THE_MEAN, HEADS_OF_THE_MEAN = 7, 2, 24
"""The steps in which a head is laid over the mean, and how often, and from how many heads, the mean is made."""
LIKELY_SAME = 0.87
"""The correlation above which two heads are likely of one person (benchmarks/same_heads.py)."""
LEAST_CELLS = 300
"""A head with fewer cells that are not empty is not compared; a brain has about 2,300."""
BLOCK = 512
"""The number of heads that are compared with all others at a time."""
SILENT = 200
"""With more heads, a bar shows how far the comparison is."""


def coarse_head(volume: Volume, brain: Brain) -> np.ndarray:
    """Return a head as uint8 [24, 24, 24]: the mean rank of brightness in cells of 8 mm, up to 255; 0 outside.

    Args:
        volume: the scan.
        brain: where its brain is, from `find_brain`.
    """
    steps = [max(1, round(SAMPLE_MM / size)) for size in volume.voxel_size_mm]
    around = brain.around(volume.voxels.shape)
    while np.prod([(each.stop - each.start) // step + 1 for each, step in zip(around, steps)]) > MOST_SAMPLED:
        steps = [step * 2 for step in steps]
    values = volume.scaled(volume.voxels[tuple(slice(each.start, each.stop, step)
                                               for each, step in zip(around, steps))])
    inside = values != 0 if brain.head is None else values > brain.head.threshold
    if not inside.any():  # a brain so thin that every n-th voxel misses it
        return np.zeros((CELLS,) * 3, np.uint8)
    some = np.sort(values[inside][::FEWER_FOR_RANKS])
    ranks = some[np.linspace(0, len(some) - 1, 256).astype(int)]
    # A table of 1,024 steps is much faster than np.interp of each voxel; a few voxels may be far brighter than all.
    low, high = ranks[1], max(ranks[-2], ranks[1] + 1e-30)
    table = np.interp(np.linspace(low, high, 1024), ranks, np.linspace(1, 255, 256)).astype(np.float32)
    ranked = table[np.clip((values - low) * (1023 / (high - low)) + 0.5, 0, 1023).astype(np.int16)] * inside
    for axis in range(3):
        weight = inside.sum(axis=tuple({0, 1, 2} - {axis}))
        centre = (weight * (np.arange(len(weight)) + 0.5)).sum() / weight.sum()
        cell = CELL_MM / (steps[axis] * volume.voxel_size_mm[axis])
        # A slab at a time: one larger product would wake the threads of BLAS, which take ten times as long as it does.
        ranked = np.moveaxis(overlaps(len(weight), centre, cell) @ np.moveaxis(ranked, axis, 1), 1, axis)
    return np.rint(ranked).astype(np.uint8)


def as_text(head: np.ndarray) -> str:
    """Return a coarse head as text for JSON, about 6,000 characters."""
    return base64.b64encode(zlib.compress(head.tobytes(), 6)).decode()


def from_text(text: str) -> np.ndarray | None:
    """Return the coarse head of a text from `as_text`; None if it is none."""
    with contextlib.suppress(ValueError, zlib.error):
        return np.frombuffer(zlib.decompressobj().decompress(base64.b64decode(text), CELLS**3 + 1), np.uint8).reshape(
            (CELLS,) * 3)
    return None


def likely_same(heads: Sequence[np.ndarray], people: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return the pairs (first, second, correlation) of heads that are likely of one person and have different names,
    the most alike first. 3,000 heads take under a minute.

    Args:
        heads: coarse heads, from `coarse_head`.
        people: the subject of each.
    """
    large = [number for number, head in enumerate(heads) if np.count_nonzero(head) >= LEAST_CELLS]
    if len({people[number] for number in large}) < 2:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):  # where a head was moved out of the grid
        details = _details(np.stack([heads[number] for number in large]).astype(np.float32) / 255)
    names = np.unique(np.array([people[number] for number in large]), return_inverse=True)[1]
    pairs = []
    for start in range(0, len(details), BLOCK):
        alike = details[start:start + BLOCK] @ details[start:].T
        alike[names[start:start + BLOCK, None] == names[None, start:]] = 0
        pairs += [(large[start + i], large[start + j], float(alike[i, j]))
                  for i, j in np.argwhere(alike > LIKELY_SAME) if i < j]
    return sorted(pairs, key=lambda pair: -pair[2])


def _details(heads: np.ndarray) -> np.ndarray:
    """Return what is each head's own, float32 [heads, cells], of mean 0 and length 1, so that products correlate."""
    shrink = overlaps(CELLS, CELLS / 2, CELLS / CELLS_TO_ALIGN, CELLS_TO_ALIGN)
    small = np.einsum("ai,bj,ck,nijk->nabc", shrink, shrink, shrink, heads, optimize=True)
    places, small_places = _places(CELLS), _places(CELLS_TO_ALIGN)
    some = small[:: -(-len(small) // HEADS_OF_THE_MEAN)]
    mean = some.mean(axis=0)
    for _ in range(ROUNDS_OF_THE_MEAN):
        mean = np.mean([_moved(head, each, small_places) for head, each in zip(some, _maps_to(mean, some))], axis=0)
    to_cells = np.diag([CELLS / CELLS_TO_ALIGN] * 3 + [1.0])
    details = np.empty((len(heads), CELLS ** 3), np.float32)
    bar = Bar(zip(heads, _maps_to(mean, small)), total=len(heads), desc="comparing heads", unit="scan",
               disable=len(heads) <= SILENT)
    for number, (head, each) in enumerate(bar):
        moved = _moved(head, to_cells @ each @ np.linalg.inv(to_cells), places)
        own = (moved - ndimage.gaussian_filter(moved, 1.0)).ravel()
        own -= own.mean()
        details[number] = own / max(float(np.linalg.norm(own)), 1e-6)
    return details


def _maps_to(target: np.ndarray, heads: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for each head the affine map [4, 4], from places of `target` to the head's, that lays it over `target`."""
    places = _places(len(target))
    slopes = np.stack(np.gradient(target)).reshape(3, -1)
    steepest = np.concatenate([slopes, (slopes[:, None] * places[None]).reshape(9, -1)])
    hessian = steepest @ steepest.T
    # A little resistance to shifts and more to all else, since a coarse grid says little about it.
    hessian += np.diag([1e-3] * 3 + [2e-2] * 9) * np.trace(hessian) / 12
    wanted = target.ravel()
    for head in heads:
        best, found, here = -2.0, np.eye(4), np.eye(4)
        for _ in range(STEPS_TO_ALIGN):
            moved = _moved(head, here, places).ravel()
            alike = float(np.corrcoef(wanted, moved)[0, 1])
            if alike > best:
                best, found = alike, here
            step = np.linalg.solve(hessian, steepest @ ((wanted @ moved) / (moved @ moved + 1e-9) * moved - wanted))
            change = np.eye(4)
            change[:3, 3] += step[:3]
            change[:3, :3] += step[3:].reshape(3, 3)
            if not abs(np.linalg.det(change)) > 0.1:
                break
            here = here @ np.linalg.inv(change)
        yield found


def _moved(head: np.ndarray, mapped: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a head as it looks at `places` through an affine map, with linear interpolation; 0 outside."""
    there = mapped[:3, :3] @ places + mapped[:3, 3:] + (len(head) - 1) / 2
    return ndimage.map_coordinates(head, there, order=1, prefilter=False).reshape(head.shape)


def _places(cells: int) -> np.ndarray:
    """Return the places [3, cells ** 3] of a grid's cells, in cells from its middle."""
    return (np.indices((cells,) * 3).reshape(3, -1) - (cells - 1) / 2).astype(np.float32)


def overlaps(length: int, centre: float, cell: float, cells: int = CELLS) -> np.ndarray:
    """Return the shares [cells, length] of each cell that elements of a line fill; the cells are `cell` elements long,
    and the middle of all lies at `centre`."""
    edges = centre + (np.arange(cells + 1) - cells / 2) * cell
    index = np.arange(length)
    overlap = np.minimum(edges[1:, None], index + 1) - np.maximum(edges[:-1, None], index)
    return (np.maximum(overlap, 0) / cell).astype(np.float32)
