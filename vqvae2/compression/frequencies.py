"""Logits -> integer tables for the coder, by a rule that rounding noise rarely tips; and where it might.

The encoder computes a prior's logits for whole rows of many images, the decoder position by position, perhaps on
another machine: sums are added up in another order, and the logits differ in their last bits. In float64 that noise is
about 1e-14 of a probability. A coder that turns probabilities into tables as they are would lose its thread at the
first difference.

Version 1 of the rule. Logits x_0 … x_(K-1) are float64. With p = softmax(x), R = floor((2^24 - K) / 16) and
P_k = p_0 + … + p_(k-1), symbol k owns the numbers from B_k up to B_(k+1) - 1 of 2^24, where

    B_k = k + 16 floor(R P_k + 0.381966)     for k < K,     and     B_K = 2^24

so that each symbol has at least 1. A decoder finds the symbol if it has the two ends of that one symbol right: all
others may differ. Noise moves an end only where R P_k + 0.381966 lies next to a whole number. (With 1/2 that would be
so wherever all codes are equally probable.) The encoder sees that (`is_doubtful`), and such a code is stored by a table
in which all codes are equal (`uniform`), at the cost of its place in a list and of log2 K bits. The margin is the
encoder's own affair: a decoder reads the list.
"""

import numpy as np
import torch

from vqvae2.compression.coder import TOTAL

VERSION = 1
"""The rule of this module, and the function that the logits are of."""
STEP = 16
"""What a rounding moves an end by."""
OFFSET = 0.381966
"""The share of a step that is added before rounding down."""
MARGIN = 2.0**-35
"""Least change of P_k that may change its rounding: 3000 times the noise that was measured. One code in 7000 comes
closer."""


def ends(logits: torch.Tensor) -> np.ndarray:
    """Return float64 `[n, K - 1]`: R P_k for k = 1 … K - 1, before rounding, of logits `[n, K]`."""
    probabilities = logits.double().cpu().softmax(1).numpy()
    return np.cumsum(probabilities[:, :-1], axis=1) * steps(logits.shape[1])


def steps(symbols: int) -> int:
    """Return R for this number of symbols."""
    return (TOTAL - symbols) // STEP


def frequencies(places: np.ndarray) -> np.ndarray:
    """Return the frequencies `[n, K]`, whole numbers as float64, whose sum is TOTAL, from `ends`."""
    count = places.shape[1] + 1
    inner = STEP * np.floor(places + OFFSET) + np.arange(1, count)
    return np.diff(inner, axis=1, prepend=0, append=TOTAL)


def owned(places: np.ndarray, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in its table each of the symbols `[n]` begins and ends: B_k and B_(k+1), from `ends`."""
    last, rows = places.shape[1], np.arange(len(places))
    at = [STEP * np.floor(places[rows, (symbols + side).clip(0, last - 1)] + OFFSET) + symbols + 1 + side
          for side in (-1, 0)]
    return np.where(symbols == 0, 0, at[0]), np.where(symbols == last, TOTAL, at[1])


def is_doubtful(places: np.ndarray, symbols: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Return for which of the symbols `[n]` noise could move one of the two ends, as bool.

    Args:
        places: from `ends`. margin: as MARGIN.
    """
    count = places.shape[1] + 1
    rows, close = np.arange(len(places)), margin * steps(count)
    found = np.zeros(len(places), bool)
    for end in (symbols - 1, symbols):  # `places` begins with the end of symbol 0
        inner = (end >= 0) & (end < count - 1)
        at = places[rows, end.clip(0, count - 2)] + OFFSET
        found |= inner & (np.abs(at - np.rint(at)) <= close)
    return found


def uniform(symbols: int) -> np.ndarray:
    """Return B_0 … B_K of a table of K symbols that are as frequent as each other: B_k = floor(2^24 k / K)."""
    return np.arange(symbols + 1) * TOTAL // symbols
