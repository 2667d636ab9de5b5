"""A causal Markov field over small code maps: exact samples, exact entropy, exact frequencies of neighbours.

A code depends on three before it, on the left, above, and far (above, two columns to the right: a place in the blind
spot of masked 3 x 3 convolutions), and in a bottom field on the top code of its 2 x 2 cell. Top codes are drawn evenly
and independently. The last `width` codes and the top codes of one row of cells decide all that follows, so that a
dynamic programme over them is exact. Beyond the edge stands a symbol of its own.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROW, TOPS = "abcdefgh", "stuv"
"""Letters of einsum: the last code of each column, the top code of each cell of the row."""
NO_LEFT, NO_FAR, CODE = "x", "y", "z"


@dataclass(frozen=True)
class PlaceProbabilities:
    """The joint and conditional probabilities of one place of the field."""

    joint: np.ndarray
    """p(left, above, far, top, code); an axis has length 1 where that neighbour is beyond the edge."""
    given: np.ndarray
    """p(code | left, above, far, top), of the same shape."""


@dataclass(frozen=True, eq=False)
class Field:
    """p(code | left, above, far, top of the cell), the same at every place of a map of `shape`."""

    table: np.ndarray
    """`[codes + 1, codes + 1, codes + 1, tops, codes]`: the last of the first three is the edge; tops may be 1."""
    shape: tuple[int, int] = (8, 8)

    @property
    def codes(self) -> int:
        return self.table.shape[-1]

    @property
    def tops(self) -> int:
        return self.table.shape[-2]

    def draw(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return maps `[count, height, width]` and their top maps `[count, height / 2, width / 2]`."""
        (height, width), draws = self.shape, np.random.default_rng(seed)
        top = draws.integers(self.tops, size=(count, height // 2, width // 2))
        framed = np.full((count, height + 1, width + 3), self.codes)
        for row in range(height):
            for column in range(width):
                given = self.table[framed[:, row + 1, column], framed[:, row, column + 1], framed[:, row, column + 3],
                                   top[:, row // 2, column // 2]]
                framed[:, row + 1, column + 1] = (given.cumsum(1)[:, :-1] <= draws.random((count, 1))).sum(1)
        return framed[:, 1:, 1:-2], top

    def bits(self, maps: np.ndarray, top: np.ndarray) -> np.ndarray:
        """Return -log2 p of each code of `maps`, given those before it and the top map: `[count, height, width]`."""
        framed = np.pad(maps, ((0, 0), (1, 0), (1, 2)), constant_values=self.codes)
        return -np.log2(self.table[framed[:, 1:, :-3], framed[:, :-1, 1:-2], framed[:, :-1, 3:],
                                   top.repeat(2, 1).repeat(2, 2), maps])

    @cached_property
    def places(self) -> dict[tuple[int, int], PlaceProbabilities]:
        """Every place in raster order, by (row, column)."""
        (height, width), found = self.shape, {}
        cells = width // 2
        rows, tops = ROW[:width], TOPS[:cells]
        state = np.ones((1,) * width + (self.tops,) * cells) / self.tops**cells
        for row in range(height):
            if row % 2 == 0:  # the next row of cells: its top codes know nothing of what came before
                state = np.broadcast_to(state.mean(tuple(range(width, width + cells)), keepdims=True), state.shape)
            for column in range(width):
                there = column > 0, row > 0, row > 0 and column + 2 < width
                given = self.table[np.ix_(*(range(self.codes) if inside else [self.codes] for inside in there))]
                left = rows[column - 1] if column else NO_LEFT
                far = rows[column + 2] if column + 2 < width else NO_FAR
                seen = left + rows[column] + far + tops[column // 2]
                before, state = rows + tops + NO_LEFT + NO_FAR, state[..., None, None]
                joint = np.einsum(f"{before}->{seen}", state)[..., None] * given
                found[row, column] = PlaceProbabilities(joint, given)
                after = rows.replace(rows[column], CODE) + tops
                state = np.einsum(f"{before},{seen}{CODE}->{after}", state, given)
        return found

    @property
    def entropy_bits(self) -> float:
        """The entropy of the maps given their top maps, in bits per code."""
        return sum((place.joint * -np.log2(place.given)).sum() for place in self.places.values()) / len(self.places)

    @property
    def position_bits(self) -> float:
        """Bits per code of a model that knows how often each code stands at each place, and nothing else."""
        shares = [place.joint.sum((0, 1, 2, 3)) for place in self.places.values()]
        return -sum((share * np.log2(share)).sum() for share in shares) / len(shares)

    def pairs(self, row: int, column: int) -> dict[str, np.ndarray]:
        """Return p(left, code) and p(above, code) at a place that has both, each `[codes, codes]`."""
        joint = self.places[row, column].joint
        return {"left": joint.sum((1, 2, 3)), "above": joint.sum((0, 2, 3))}


def order_that_hides(codes: int, tops: int = 1) -> Field:
    """A field whose code mostly is left + far, modulo `codes`, of which neither neighbour alone tells much.

    Where the top code is 1 it mostly repeats left, where it is 2 above; the rest leans towards above and towards 0.
    """
    left, above, far, top, code = np.ogrid[:codes + 1, :codes + 1, :codes + 1, :tops, :codes]
    likely = np.choose(top, [left + far, left, above]) % codes
    weights = 0.1 + 1.2 * (code == likely) + 0.4 * (code == above) + 0.3 * (code == 0)
    return Field(weights / weights.sum(-1, keepdims=True))
