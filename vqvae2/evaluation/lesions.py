"""Images -> images with a synthetic lesion, and where it is: what a map of the unusual should find.

Three kinds: a `bright` and a `dark` blob, whose intensity gives them away, and a `ventricle` that is moved and widened
by a smooth warp, which has no intensity that a healthy brain lacks: only its place is unusual. All are put inside the
brain. They are drawn by (seed, kind, number of the image), so that equal settings give equal lesions.

NOTE A lesion's mask is what of it can be seen: the pixels of the blob, or where a ventricle is now or was before, whose
intensity differs from the healthy image's by more than CHANGE. A bright pixel in bright tissue is nothing that anybody
could find. These are drawings, good for comparing scores; they say nothing about a disease.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vqvae2.common import random_numbers

KINDS = ("bright", "dark", "ventricle")
CHANGE = 0.1
"""Difference on the range 0…1 above which a pixel belongs to the lesion."""
SMALLEST_PIXELS = 6
"""A lesion with fewer pixels is none."""
RADII = (0.04, 0.08)
"""Half axes of a blob, as shares of the root of the brain's area: 6 to 11 mm in an adult's."""
STRENGTHS = (0.5, 0.9)
"""By how much of the way a blob's centre is drawn to white or black."""
TISSUE = {"bright": (0.0, 0.7), "dark": (0.5, 1.0)}
"""Local mean intensities in which a blob shows."""
DEEP, SMALLEST_VENTRICLE, MOST_OFF_CENTRE = 0.3, 0.008, 0.2
"""How deep a ventricle lies, as a share of the brain's largest depth; its least share of the brain's area; the longest
way from the brain's middle to its own, as a share of the root of the brain's area."""


@dataclass(frozen=True)
class Lesion:
    """An image that was healthy, and what was done to it."""

    image: np.ndarray
    """float32 `[channels, height, width]` in 0…1."""
    mask: np.ndarray
    """bool `[height, width]`: see the module's NOTE."""


def add(kind: str, image: np.ndarray, brain: np.ndarray, seed: int, number: int) -> Lesion | None:
    """Return the image with one lesion, or None where it has no place for this kind, such as no ventricle to move.

    Args:
        kind: one of KINDS.
        image: float32 `[channels, height, width]` in 0…1.
        brain: bool `[height, width]`; no pixel outside of it is changed.
        seed, number: of the draws, and of the image.
    Raises: KeyError for another kind.
    """
    draws = random_numbers.uniform(seed, f"{kind} lesion", number, np.arange(5)).numpy()
    changed = _moved_ventricle(image, brain, draws) if kind == "ventricle" else _blob(kind, image, brain, draws)
    if changed is None:
        return None
    picture = np.where(brain, changed[0], image).astype(np.float32)
    mask = brain & changed[1] & (np.abs(picture - image).mean(0) > CHANGE)
    return Lesion(picture, mask) if mask.sum() >= SMALLEST_PIXELS else None


def find_ventricle(image: np.ndarray, brain: np.ndarray) -> np.ndarray | None:
    """Return bool `[height, width]`, the largest dark space deep in the brain's middle, or None where there is none.

    That is a ventricle, or below the ventricles a cistern. Dark is below half of the brain's median, as CSF is in T1,
    after a light smoothing that takes thin sulci away; `image` is `[channels, height, width]` in 0…1.
    """
    if not brain.any():
        return None
    extent, depth, middle = math.sqrt(brain.sum()), _depth(brain), np.argwhere(brain).mean(0)
    grey = ndimage.gaussian_filter(image.mean(0), 0.012 * extent)
    pieces, _ = ndimage.label(brain & (depth > DEEP * depth.max()) & (grey < np.median(grey[brain]) / 2))
    sizes = np.bincount(pieces.flat)[1:]
    if len(sizes) == 0 or sizes.max() < SMALLEST_VENTRICLE * brain.sum():
        return None
    largest = pieces == sizes.argmax() + 1
    off_centre = math.dist(np.argwhere(largest).mean(0), middle)
    return largest if off_centre <= MOST_OFF_CENTRE * extent else None


def warp(ventricle: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return float `[2, height, width]`, the row and column from which each pixel is taken: a diffeomorphism.

    Args:
        ventricle, brain: bool `[height, width]`.
        draws: at least 3 numbers in 0…1: how far it is moved, where to, how much it is widened.

    With r the distance from the ventricle's middle: place - bump(r) (shift + widening (place - middle)), where bump(r)
    = (1 - r²/radius²)² falls to 0 smoothly, inside the brain.
    """
    middle = np.argwhere(ventricle).mean(0)
    down, across = _from(middle, brain.shape)
    distance = np.hypot(down, across)
    radius = min(1.5 * distance[ventricle].max() + 0.1 * math.sqrt(brain.sum()),
                 _depth(brain)[tuple(middle.round().astype(int))])
    bump = (1 - (distance / radius) ** 2).clip(0) ** 2
    # The bump's slope is at most 1.54 / radius: with these bounds no place is folded over another.
    length, turn, widening = radius * (0.15 + 0.15 * draws[0]), 2 * math.pi * draws[1], 0.3 + 0.2 * draws[2]
    rows, columns = np.indices(brain.shape)
    return np.stack([rows - bump * (length * math.sin(turn) + widening * down),
                     columns - bump * (length * math.cos(turn) + widening * across)])


def _blob(kind: str, image: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """An ellipse with a soft edge, drawn towards white or black, in tissue where that shows; and where it is."""
    extent = math.sqrt(brain.sum())
    radii = extent * (RADII[0] + (RADII[1] - RADII[0]) * draws[:2])
    local = ndimage.gaussian_filter(image.mean(0), radii.mean() / 2)
    least, most = TISSUE[kind]
    places = np.argwhere((_depth(brain) > radii.max()) & (local >= least) & (local <= most))
    if len(places) == 0:
        return None
    down, across = _from(places[int(draws[2] * len(places))], brain.shape)
    cosine, sine = math.cos(math.pi * draws[3]), math.sin(math.pi * draws[3])
    distance = np.hypot((cosine * down + sine * across) / radii[0], (cosine * across - sine * down) / radii[1])
    strength = STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * draws[4]
    weight = strength * ((1.25 - distance) / 0.5).clip(0, 1)
    return image + weight * ((kind == "bright") - image), weight > 0


def _moved_ventricle(image: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The picture around the largest deep dark space, moved and widened, and where that space is now or was."""
    ventricle = find_ventricle(image, brain)
    if ventricle is None:
        return None
    places = warp(ventricle, brain, draws)
    picture = np.stack([ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in image])
    now = ndimage.map_coordinates(ventricle.astype(np.float32), places, order=1) > 0.5
    return picture, ventricle | now


def _depth(brain: np.ndarray) -> np.ndarray:
    """Pixels to the brain's edge, or the picture's."""
    return ndimage.distance_transform_edt(np.pad(brain, 1))[1:-1, 1:-1]


def _from(place: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel lies below and to the right of a place."""
    rows, columns = np.indices(shape, dtype=np.float64)
    return rows - place[0], columns - place[1]
