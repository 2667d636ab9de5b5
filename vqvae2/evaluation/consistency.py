"""Volumes that were drawn plane by plane -> how well their planes fit each other, beside real volumes of other people.

A slab is a part of a volume: planes from inferior to superior at equal distances, uint8 `[planes, height, width]`, each
plane as the slices show it (anterior at the top, the subject's left at the right). No metric of consistency has been
agreed on, so several are given, none of which needs a reference volume:

- neighbour differences: mean |difference| of two planes that are 1, 2 and 4 planes apart, inside the brain of either;
- jumps of area: mean |change of the area| from a plane to the next, over the mean area, of the brain and of the
  ventricles (all that is dark and deep in the brain);
- kernel MMD² of coronal and of sagittal pictures that are cut through the planes: an observer's view, in the features
  of a network. Planes that do not belong together make stripes there.

A figure has a meaning only beside two others: that of real volumes (which is not 0: brains change from plane to plane)
and that of planes which were drawn independently. Too smooth is as wrong as too rough, so the aim is a ratio to real
near 1, from either side. An MMD² cannot be too small, and is 0 in the mean for equal populations, so that its ratio to
real volumes says nothing where theirs may be 0: there its interval has to reach down to theirs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common.statistics import bootstrap
from vqvae2.evaluation import distances, lesions
from vqvae2.evaluation.features import Extractor
from vqvae2.images.dataset import to_bytes
from vqvae2.metrics import similarity

STEPS = (1, 2, 4)
FLOOR = 25
"""Darker pixels are no brain. Real backgrounds are exactly 0, drawn ones a few grey values above it."""
PLACES, MIDDLE = 8, 0.5
"""Pictures that are cut out of each volume in each of the two directions, and the share of the brain's length, in its
middle, where they are cut."""
AIM = 1.5
"""A figure should be at most so many times that of real volumes, and at least that figure divided by it."""
DIRECTIONS = ("coronal", "sagittal")


class Shares(NamedTuple):
    """This is a figure of a set of volumes: the sum of the parts over the sum of the wholes.

    Attributes:
        parts: float64 `[volumes]`. wholes: likewise, 0 or more.
    """

    parts: np.ndarray
    wholes: np.ndarray

    @property
    def value(self) -> float | None:
        """The figure; None where the wholes are 0."""
        return float(self.parts.sum() / self.wholes.sum()) if self.wholes.sum() > 0 else None

    def interval(self, seed: int) -> tuple[float, float] | tuple[None, None]:
        """Return the 95 % interval of the figure, by drawing volumes with replacement."""
        return bootstrap(lambda drawn: (drawn @ self.parts) / (drawn @ self.wholes), [len(self.parts)], seed)


def brains(slabs: np.ndarray) -> np.ndarray:
    """Return bool of the slabs' shape `[n, planes, height, width]`: pixels above FLOOR, holes filled in each plane."""
    flat = torch.from_numpy(slabs > FLOOR).flatten(0, 1)[:, None]
    return similarity.brain_mask(flat).numpy().reshape(slabs.shape)


def neighbour_differences(slabs: np.ndarray, steps: Sequence[int] = STEPS) -> dict[int, Shares]:
    """Return for each step the mean |difference| of planes so far apart, on 0…1, over the pixels of either's brain.

    Args:
        slabs: uint8 `[n, planes, height, width]`. Steps that are as large as the number of planes are left out.
    """
    inside, found = brains(slabs), {}
    for step in (step for step in steps if step < slabs.shape[1]):
        either = inside[:, step:] | inside[:, :-step]
        difference = np.abs(slabs[:, step:].astype(np.int16) - slabs[:, :-step]) / 255
        found[step] = Shares((difference * either).sum((1, 2, 3)), either.sum((1, 2, 3)).astype(float))
    return found


def area_jumps(slabs: np.ndarray) -> dict[str, Shares]:
    """Return for brain and ventricles the mean |change of the area| from a plane to the next, over the mean area.

    `slabs` is uint8 `[n, planes, height, width]` of 2 planes or more.
    """
    inside = brains(slabs)
    fluid = np.array([[np.count_nonzero(lesions.deep_fluid(plane[None] / 255, brain)) for plane, brain in zip(*pair)]
                      for pair in zip(slabs, inside)])
    return {name: Shares(np.abs(np.diff(areas, axis=1)).mean(1), areas.mean(1, dtype=float))
            for name, areas in (("brain", inside.sum((2, 3))), ("ventricles", fluid))}


def reslices(slabs: np.ndarray, plane_mm: float, pixel_mm: float, places: int = PLACES) -> dict[str, torch.Tensor]:
    """Return coronal and sagittal pictures through slabs, uint8 `[n * places, 1, side, side]`, those of one slab in a
    row.

    Superior is up; coronal pictures have the subject's left at the right, sagittal ones anterior at the left. They are
    cut at evenly chosen places in the middle of each slab's brain. Their pixels are square, as large as those in the
    plane, so that several planes may lie in one; a black border above and below, or at the sides, makes them square.

    Args:
        slabs: uint8 `[n, planes, height, width]`.
        plane_mm: distance of two planes. pixel_mm: width and height of a pixel in the plane.
    """
    found = {name: [] for name in DIRECTIONS}
    inside = brains(slabs).any(1)
    for slab, brain in zip(slabs, inside):
        upright = slab[::-1]
        for name, axis in zip(DIRECTIONS, (1, 2)):
            cut = np.moveaxis(upright, axis, 0)[_places(brain.any(2 - axis), places)]
            found[name].append(squared(torch.from_numpy(np.ascontiguousarray(cut))[:, None],
                                       (plane_mm, pixel_mm), pixel_mm))
    return {name: torch.cat(cut) for name, cut in found.items()}


def squared(pictures: torch.Tensor, distances_mm: tuple[float, float], pixel_mm: float) -> torch.Tensor:
    """Return pictures `[n, 1, height, width]` with square pixels in a black square, uint8 `[n, 1, side, side]`.

    Args:
        distances_mm: from a row to the next, and from a column to the next. pixel_mm: sides of the new pixels.
    """
    shape = [max(1, round(number * mm / pixel_mm)) for number, mm in zip(pictures.shape[2:], distances_mm)]
    even = functional.interpolate(pictures.float() / 255, shape, mode="bilinear", antialias=True)
    down, across = (max(shape) - side for side in shape)
    return to_bytes(functional.pad(even, [across // 2, across - across // 2, down // 2, down - down // 2]))


def figures(sets: dict[str, np.ndarray], real: np.ndarray, other_real: np.ndarray, plane_mm: float, pixel_mm: float,
            extractor: Extractor, seed: int) -> dict[str, dict]:
    """Return for each figure its value of `real`, of `other_real` and of each of the `sets`.

    Args:
        sets: name -> drawn slabs, uint8 `[n, planes, height, width]`.
        real: slabs of real people, with which all are compared. other_real: of other people, which says how far apart
            real people are; the features are whitened by their pictures, where these are enough. All have the same
            distance of planes and the same number of them.
        plane_mm, pixel_mm: as for `reslices`.
        extractor: the network for the MMD². seed: of the bootstrap.
    Returns:
        figure -> "real" and "other_real" and each of the sets -> {"value", "ci_low", "ci_high", "ratio", "within_aim"}.
        ratio: to the value of `real`; an MMD² is a distance to `real`, and its ratio is to that of `other_real`, None
        where the interval of that reaches down to 0. within_aim: whether the ratio, or its inverse, is at most AIM; of
        an MMD², whether its interval begins below AIM times the upper end of that of `other_real`.
    """
    everything = {"real": real, "other_real": other_real, **sets}
    found = {name: _shares(slabs) for name, slabs in everything.items()}
    table = {figure: _beside_real({name: _value(found[name][figure].value, found[name][figure].interval(seed))
                                   for name in everything}) for figure in found["real"]}
    pictures = {name: reslices(slabs, plane_mm, pixel_mm) for name, slabs in everything.items()}
    for direction in DIRECTIONS:
        features = [extractor(cut[direction]) for cut in pictures.values()]
        white = distances.whitened(extractor, features[1], *features)
        owners = [[str(number // PLACES) for number in range(len(points))] for points in white]
        table[f"kernel MMD², {direction}"] = _beside_other_real({
            name: _value(distances.kernel_mmd(points, white[0], own, owners[0]),
                         distances.mmd_interval(points, white[0], own, seed, owners[0]))
            for name, points, own in list(zip(everything, white, owners))[1:]})
    return table


def _shares(slabs: np.ndarray) -> dict[str, Shares]:
    return {**{f"difference of planes {step} apart": shares for step, shares in neighbour_differences(slabs).items()},
            **{f"jumps of the area, {name}": shares for name, shares in area_jumps(slabs).items()}}


def _value(value: float | None, interval: tuple[float, float] | tuple[None, None]) -> dict:
    return {"value": value, "ci_low": interval[0], "ci_high": interval[1]}


def _beside_real(row: dict[str, dict]) -> dict[str, dict]:
    """Return the values of all sets, with their ratios to real volumes."""
    real = row["real"]["value"]
    ratios = [own["value"] / real if real and own["value"] is not None else None for own in row.values()]
    return {name: own | {"ratio": ratio, "within_aim": None if ratio is None else 1 / AIM <= ratio <= AIM}
            for (name, own), ratio in zip(row.items(), ratios)}


def _beside_other_real(row: dict[str, dict]) -> dict[str, dict]:
    """Return the MMD² of all sets, with their ratios to that of other real volumes."""
    floor = row["other_real"]
    is_above_0 = floor["ci_low"] is not None and floor["ci_low"] > 0
    return {name: own | {"ratio": own["value"] / floor["value"] if is_above_0 and own["value"] is not None else None,
                         "within_aim": None if None in (own["ci_low"], floor["ci_high"]) else
                         own["ci_low"] <= AIM * floor["ci_high"]} for name, own in row.items()}


def _places(brain: np.ndarray, places: int) -> np.ndarray:
    """Return evenly chosen places in the middle of the brain's extent; `brain` is bool `[length]`, True where it is."""
    there = np.flatnonzero(brain) if brain.any() else np.arange(len(brain))
    middle, half = (there[0] + there[-1]) / 2, (there[-1] - there[0]) / 2 * MIDDLE
    return np.linspace(middle - half, middle + half, places).round().astype(int)
