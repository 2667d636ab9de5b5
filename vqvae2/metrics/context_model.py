"""Training codes of one level -> bits that models which only count need for other codes, and new code maps.

frequency: how often each code stands in the training maps. place: how often the code stands at this place. neighbours:
how often the code follows this left and this upper neighbour (beyond the edge is a symbol of its own). Each estimate is

    p(code | context) = (count(code, context) + k q(code)) / (count(context) + k)

where q is the coarser estimate: even use below the frequency; the frequency below the place, the left and the upper
neighbour; the mean of the last two below both neighbours [1]. A prior has to need fewer bits.

Code maps can be drawn from the neighbours model too: the baseline that a prior's samples have to beat, and what a check
of samples has to notice. The model knows nothing of the top while it draws the bottom, and no more of a brain's outline
than two neighbours tell. A draw has two steps: with probability count / (count + k) one of the training codes that had
these neighbours, all equally likely, or else a draw from the coarser q, which is made likewise. No table of
probabilities is needed.

[1] MacKay and Peto 1995, A hierarchical Dirichlet language model, equation 13.
"""

import numpy as np
import torch

from vqvae2.common import random_numbers
from vqvae2.common.statistics import evenly

CONCENTRATIONS = 4.0 ** np.arange(-3, 9)
MOST_CODES = 2**25
"""Codes of the training maps, and of the test maps, that are counted at most, which takes about 4 GB."""
STEPS = ("both", "side", "neighbour", "all", "even")
"""Each of these choices for a code has its own random number."""


def context_model_bits(train_codes: np.ndarray, test_codes: np.ndarray, size: int) -> dict[str, float]:
    """Return what the models that only count reach on test codes, in bits per code.

    Args:
        train_codes: integers in [0, size), `[n, height, width]`, array or CPU tensor, n at least 1.
        test_codes: likewise `[m, height, width]`, m at least 1.
    Returns: {"histogram", "position_histogram", "context"}: frequency, place and neighbours.
    Raises: ValueError for other shapes or codes.

    Where there are more than MOST_CODES codes, those of evenly chosen maps stand for all. Every k is the best of
    CONCENTRATIONS on the last fifth of the training maps, given counts of the others (maps stand in the order of their
    subjects, so this fifth is mostly other people); then all are counted. Test codes choose nothing.
    """
    train, test = (_checked_codes(_some_maps(codes), name, size) for codes, name in (
        (train_codes, "train"), (test_codes, "test")))
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"test_codes: expected code maps of shape {train.shape[1:]}, found {test.shape[1:]}.")
    bits = _bits(_evidence(train, test, size), context_concentrations(train, size), size)
    return {"histogram": bits["all"], "position_histogram": bits["place"], "context": bits["both"]}


def context_concentrations(train_codes: np.ndarray, size: int) -> dict[str, float]:
    """Return the k of each estimate of `context_model_bits`, by the kind of context: see there.

    `train_codes` is as there. Raises: ValueError for other shapes or codes.
    """
    train = _checked_codes(train_codes, "train", size)
    concentrations = dict.fromkeys(("all", "place", "left", "above", "both"), 1.0)
    kept = min(len(train) - 1, len(train) * 4 // 5)
    if kept > 0:  # a single map cannot be split, and keeps k = 1
        held_out = _evidence(train[:kept], train[kept:], size)
        for context in concentrations:
            concentrations[context] = float(min(CONCENTRATIONS, key=lambda k: _bits(
                held_out, {**concentrations, context: k}, size)[context]))
    return concentrations


def code_contexts(codes: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Return the context of each code in each model of `context_model_bits`: int64 `[n height width]`.

    `codes` is integer `[n, height, width]`. all: 0. place: row x width + column. left, above: that code, or `size`
    beyond the edge. both: left x (size + 1) + above.
    """
    framed = np.pad(codes, ((0, 0), (1, 0), (1, 0)), constant_values=size)
    left, above = framed[:, 1:, :-1], framed[:, :-1, 1:]
    place = np.broadcast_to(np.arange(codes[0].size).reshape(codes[0].shape), codes.shape)
    return {"all": np.zeros(codes.size, np.int64), "place": place.ravel(), "left": left.ravel(),
            "above": above.ravel(), "both": (left * (size + 1) + above).ravel()}


def draw(train_codes: np.ndarray | torch.Tensor, size: int, count: int, seed: int, level: str,
         first: int = 0) -> torch.Tensor:
    """Return code maps drawn from the neighbours model of one level, int64 `[count, height, width]` in [0, size).

    Args:
        train_codes: the level's codes of the training images, integers in [0, size), `[n, height, width]`, n at least
            1, array or CPU tensor: the model is fitted on them as `context_model_bits` fits it.
        size: of the codebook.
        count: maps to draw.
        seed, level: of the random numbers, each map's own: map i is the same whatever the count. Give the two levels
            their names, or they would be drawn by the same numbers.
        first: number of the first map.
    Raises: ValueError for other shapes or codes.
    """
    train = np.asarray(train_codes).astype(np.int64)
    concentrations, contexts, tables = context_concentrations(train, size), code_contexts(train, size), {}
    for kind, number in (("both", (size + 1) ** 2), ("left", size + 1), ("above", size + 1), ("all", 1)):
        order = np.argsort(contexts[kind], kind="stable")
        starts = np.searchsorted(contexts[kind][order], np.arange(number + 1))
        tables[kind] = train.ravel()[order], starts, concentrations[kind]
    height, width = train.shape[1:]
    framed = np.full((count, height + 1, width + 1), size)
    images = np.arange(first, first + count)[:, None]
    for diagonal in range(height + width - 1):  # codes of one diagonal do not see each other
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        left, above = framed[:, row + 1, column], framed[:, row, column + 1]
        numbers = {step: random_numbers.uniform(seed, f"context model, {level}, {step}", images,
                                                row * width + column).numpy() for step in STEPS}
        found = [_drawn(*tables["both"], left * (size + 1) + above, numbers["both"]),
                 np.where(numbers["side"] < 0.5, _drawn(*tables["left"], left, numbers["neighbour"]),
                          _drawn(*tables["above"], above, numbers["neighbour"])),
                 _drawn(*tables["all"], np.zeros_like(left), numbers["all"])]
        # The code of the finest table that gives a code.
        framed[:, row + 1, column + 1] = np.select([codes >= 0 for codes in found], found,
                                                   (numbers["even"] * size).astype(np.int64))
    return torch.from_numpy(framed[:, 1:, 1:].copy())


def _drawn(codes: np.ndarray, starts: np.ndarray, concentration: float, contexts: np.ndarray,
           numbers: np.ndarray) -> np.ndarray:
    """Return a training code for each context, or -1 where the coarser estimate has to be asked.

    The codes of context c are `codes[starts[c]:starts[c + 1]]`; the coarser estimate counts as much as `concentration`
    codes. `numbers` are uniform in [0, 1), of the contexts' shape.
    """
    first = starts[contexts]
    count = starts[contexts + 1] - first
    place = (numbers * (count + concentration)).astype(np.int64)
    # Where the count is 0 `first` may lie beyond the end; it is not used.
    return np.where(place < count, codes[(first + place).clip(max=len(codes) - 1)], -1)


def _bits(evidence: dict, concentrations: dict[str, float], size: int) -> dict[str, float]:
    """Return the mean bits per code by each kind of context, every estimate leaning on the coarser estimate."""
    def estimate(kind: str, coarser: np.ndarray | float) -> np.ndarray:
        matches, occurrences = evidence[kind]
        return (matches + concentrations[kind] * coarser) / (occurrences + concentrations[kind])

    histogram = estimate("all", 1 / size)
    given = {"all": histogram} | {kind: estimate(kind, histogram) for kind in ("place", "left", "above")}
    given["both"] = estimate("both", (given["left"] + given["above"]) / 2)
    return {kind: float(-np.log2(probability).mean()) for kind, probability in given.items()}


def _some_maps(codes: np.ndarray) -> np.ndarray:
    """Return all maps, or evenly chosen maps of MOST_CODES codes at most."""
    codes = np.asarray(codes)
    return codes if codes.size <= MOST_CODES else codes[evenly(len(codes), MOST_CODES // codes[0].size)]


def _checked_codes(codes: np.ndarray, name: str, size: int) -> np.ndarray:
    array = np.asarray(codes).astype(np.int64)
    if array.ndim != 3 or array.size == 0 or array.min() < 0 or array.max() >= size:
        found = f"{array.shape}" + (f" with {array.min()} to {array.max()}" if array.size else "")
        raise ValueError(f"{name}_codes: expected integers in [0, {size}) of shape [n, height, width], found {found}.")
    return array


def _occurrences(among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how often each of `wanted` stands in `among`: int64, as `wanted`."""
    values, counts = np.unique(among, return_counts=True)
    nearest = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return np.where(values[nearest] == wanted, counts[nearest], 0)


def _evidence(counted: np.ndarray, judged: np.ndarray, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each kind of context the counts of (code, context) and of context that each judged code has in the
    counted maps."""
    of_counted, of_judged = code_contexts(counted, size), code_contexts(judged, size)
    return {kind: (_occurrences(of_counted[kind] * size + counted.ravel(), of_judged[kind] * size + judged.ravel()),
                   _occurrences(of_counted[kind], of_judged[kind])) for kind in of_counted}
