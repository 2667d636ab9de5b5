"""Facts of slices -> which slices of the same scan lie beside each one, of which a prior is told one: the previous.

While training, the previous slice is any of the REACH slices below or above, so that brains can be sampled upwards,
downwards and in larger steps. Some of its codes are hidden, here and there: a sampled slice is never quite what a real
one is, and a prior that copies everything would carry each fault through the rest of the brain.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vqvae2.common import random_numbers
from vqvae2.common.errors import expect
from vqvae2.priors.conditions import Column
from vqvae2.priors.settings import PREVIOUS, PREVIOUS_MM

REACH = 4
"""Slices on either side that may be the previous one."""
MOST_HIDDEN = 0.4
"""Share of the previous slice's codes that are unknown while training: between 0 and this, for each image another."""
NEEDED = ("scan", "plane", "position_mm")


class Neighbours:
    """The slices beside each slice of a split.

    Args:
        facts: the manifest's row of each slice.
    Raises: UserError if they do not say which scan a slice is of and where it lies, or no slice has a neighbour.
    """

    def __init__(self, facts: Sequence[Mapping[str, str]]):
        rows = [tuple((row.get(name) or "").strip() for name in NEEDED) for row in facts]
        expect(all(map(all, rows)), f"--condition {PREVIOUS}", f"slices with {', '.join(NEEDED)} in manifest.csv",
               "some without", "Cut them by vqvae2 extract --per-scan all.")
        scans = defaultdict(list)
        for item, (scan, plane, position_mm) in enumerate(rows):
            scans[scan, plane].append((float(position_mm), item))
        self.first = np.zeros(len(rows), np.int64)
        """The number of the first slice of each slice's scan: slices with equal numbers are of one scan."""
        self.items = np.full((len(rows), 2 * REACH), -1, np.int64)
        """The slices below, nearest first, then those above; -1 where there is none."""
        self.offsets_mm = np.full((len(rows), 2 * REACH), np.nan, np.float32)
        for places in scans.values():
            places.sort()
            for number, (here, item) in enumerate(places):
                self.first[item] = places[0][1]
                for column, step in enumerate((*range(-1, -REACH - 1, -1), *range(1, REACH + 1))):
                    if 0 <= number + step < len(places):
                        self.offsets_mm[item, column] = places[number + step][0] - here
                        self.items[item, column] = places[number + step][1]
        expect(not rows or bool((self.items >= 0).any()), f"--condition {PREVIOUS}", "several slices of a scan",
               "one of each", "Cut them by vqvae2 extract --per-scan all.")

    def column(self) -> Column:
        """Return the column that says how far away the previous slice lies: its position less the slice's own."""
        known = self.offsets_mm[np.isfinite(self.offsets_mm)].astype(np.float64)
        return Column(PREVIOUS_MM, (), 0.0, float(np.sqrt((known**2).mean())), float(known.min()), float(known.max()))

    def nearest(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest slice below of each of `items`, or above, and its offset in mm; -1 and NaN for none."""
        below = self.items[items, 0] >= 0
        columns = np.where(below, 0, REACH)
        return self.items[items, columns], self.offsets_mm[items, columns]

    def any(self, items: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return any one of the slices beside each of `items`, and its offset in mm; -1 and NaN where there is none."""
        there = self.items[items] >= 0
        draws = random_numbers.uniform(seed, "previous slice", epoch, items[:, None],
                                       np.arange(there.shape[1])[None]).numpy()
        columns = np.where(there, draws, -1).argmax(1)
        return self.items[items, columns], self.offsets_mm[items, columns]


def with_codes_hidden(codes: torch.Tensor, items: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
    """Return code maps `[n, height, width]` of which a share is -1, up to MOST_HIDDEN, by each image's own numbers."""
    draws = random_numbers.uniform(seed, "hidden codes", epoch, items[:, None], np.arange(codes[0].numel() + 1)[None])
    return codes.masked_fill((draws[:, 1:] < draws[:, :1] * MOST_HIDDEN).view_as(codes), -1)
