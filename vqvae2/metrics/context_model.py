"""Training codes of one level -> new code maps, drawn from a model that only counts which codes follow which.

The model is `metrics.context_model_bits`' own, order 2: a code is drawn given its left and its upper neighbour, and
nothing else. It is the baseline that a prior's samples have to beat, and what a check of samples has to notice: of the
top it knows nothing while it draws the bottom, of a brain's outline nothing more than two neighbours tell.

    p(code | left, above) = (count(code, left, above) + k q(code)) / (count(left, above) + k)

is a draw in two steps: with probability count / (count + k) one of the training codes that had these neighbours, all
alike, or else a draw from the coarser q, which is made likewise. So no table of probabilities is needed.

Reference: MacKay and Peto 1995, A hierarchical Dirichlet language model, equation 13.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vqvae2.common import random_numbers
from vqvae2.metrics import similarity

STEPS = ("both", "side", "neighbour", "all", "even")
"""What one code may need a random number for, each its own."""


@dataclass(frozen=True)
class Urn:
    """The training codes, put together by what stood beside them."""

    codes: np.ndarray
    """int64, all training codes, in the order of their contexts."""
    starts: np.ndarray
    """int64 `[contexts + 1]`: those of context c are `codes[starts[c]:starts[c + 1]]`."""
    concentration: float
    """k: the coarser estimate counts as much as k codes."""

    @classmethod
    def of(cls, codes: np.ndarray, contexts: np.ndarray, number: int, concentration: float) -> "Urn":
        """Put codes together; all arrays are flat, contexts in [0, number)."""
        order = np.argsort(contexts, kind="stable")
        return cls(codes[order], np.searchsorted(contexts[order], np.arange(number + 1)), concentration)

    def draw(self, contexts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return a code for each context, or -1 where the coarser estimate has to be asked.

        `numbers` are uniform in [0, 1), of the contexts' shape.
        """
        first = self.starts[contexts]
        count = self.starts[contexts + 1] - first
        place = (numbers * (count + self.concentration)).astype(np.int64)
        # Where the count is 0 `first` may lie beyond the end; it is not used.
        return np.where(place < count, self.codes[(first + place).clip(max=len(self.codes) - 1)], -1)


def draw(train_codes: np.ndarray | torch.Tensor, size: int, count: int, seed: int, level: str,
         first: int = 0) -> torch.Tensor:
    """Return code maps drawn from the order-2 model of one level, int64 `[count, height, width]` in [0, size).

    Args:
        train_codes: the level's codes of the training images, integers in [0, size), `[n, height, width]`, n at least
            1, array or CPU tensor: the model is fitted on them as `metrics.context_model_bits` fits it.
        size: of the codebook.
        count: maps to draw.
        seed, level: of the random numbers, each map's own: map i is the same whatever the count. Give the two levels
            their names, or they would be drawn by the same numbers.
        first: number of the first map.
    Raises: ValueError for other shapes or codes.
    """
    train = np.asarray(train_codes).astype(np.int64)
    urns = _urns(train, size)
    height, width = train.shape[1:]
    framed = np.full((count, height + 1, width + 1), size)
    images = np.arange(first, first + count)[:, None]
    for diagonal in range(height + width - 1):  # codes of one diagonal do not see each other
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        numbers = {step: random_numbers.uniform(seed, f"context model, {level}, {step}", images,
                                                row * width + column).numpy() for step in STEPS}
        framed[:, row + 1, column + 1] = _draw(urns, size, framed[:, row + 1, column], framed[:, row, column + 1],
                                               numbers)
    return torch.from_numpy(framed[:, 1:, 1:].copy())


def _urns(train: np.ndarray, size: int) -> dict[str, Urn]:
    concentrations = similarity.context_concentrations(train, size)
    contexts = similarity.code_contexts(train, size)
    numbers = {"both": (size + 1) ** 2, "left": size + 1, "above": size + 1, "all": 1}
    return {kind: Urn.of(train.ravel(), contexts[kind], number, concentrations[kind])
            for kind, number in numbers.items()}


def _draw(urns: dict[str, Urn], size: int, left: np.ndarray, above: np.ndarray,
          numbers: dict[str, np.ndarray]) -> np.ndarray:
    """A code for each pair of neighbours: from the finest urn that gives one."""
    both = urns["both"].draw(left * (size + 1) + above, numbers["both"])
    side = np.where(numbers["side"] < 0.5, urns["left"].draw(left, numbers["neighbour"]),
                    urns["above"].draw(above, numbers["neighbour"]))
    histogram = urns["all"].draw(np.zeros_like(left), numbers["all"])
    even = (numbers["even"] * size).astype(np.int64)
    return np.select([both >= 0, side >= 0, histogram >= 0], [both, side, histogram], even)
