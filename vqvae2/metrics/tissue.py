"""T1 images and their brains -> shares of fluid, grey and white matter: a mixture of three Gaussians, by EM.

The grey values of a brain are taken for those of three tissues, fluid darkest and white matter brightest, with one
deviation for all three (the noise is that of the scanner; with deviations of their own the middle class swallows the
pixels in which two tissues meet). The mixture is first fitted to all training images together, and from there to each
image: so the order of the tissues is the same in all, and an image without fluid finds little of it.

NOTE: A pixel of 3.5 mm often holds two tissues, and counts for the nearer grey value. These shares serve to compare
images of one size with each other. They are no volumetry.

1. Dempster, Laird, Rubin 1977, Maximum likelihood from incomplete data via the EM algorithm.
"""

from typing import NamedTuple

import numpy as np

TISSUES = ("fluid", "grey matter", "white matter")
BINS, WIDTH = 64, 4
"""Bins of a histogram, and grey values of 8 bit in each."""
ROUNDS, FIRST_ROUNDS = 60, 500
"""Rounds of EM for each image, and for all images together."""
SMALLEST_DEVIATION = 4.0


class Mixture(NamedTuple):
    """This is a mixture of three Gaussians for each histogram.

    Attributes:
        means: `[n, 3]`, rising, in grey values. deviations: `[n]`. shares: `[n, 3]`, sum 1.
    """

    means: np.ndarray
    deviations: np.ndarray
    shares: np.ndarray


def histograms(images: np.ndarray, brains: np.ndarray) -> np.ndarray:
    """Return the number of the brain's pixels in each bin, float64 `[n, BINS]`.

    Args:
        images: uint8 `[n, height, width]`. brains: bool of the same shape.
    """
    return np.array([np.bincount(image[brain] // WIDTH, minlength=BINS) for image, brain in zip(images, brains)],
                    dtype=float).reshape(-1, BINS)


def first_mixture(counts: np.ndarray) -> Mixture:
    """Return the mixture of all histograms `[n, BINS]` together, fitted from thirds of the pixels."""
    pooled = counts.sum(0, keepdims=True)
    whole = pooled.cumsum() / max(pooled.sum(), 1)
    means = WIDTH * (np.searchsorted(whole, (1 / 6, 1 / 2, 5 / 6)) + 0.5)
    return fitted(pooled, Mixture(means[None], np.array([30.0]), np.full((1, 3), 1 / 3)), FIRST_ROUNDS)


def fitted(counts: np.ndarray, start: Mixture, rounds: int = ROUNDS) -> Mixture:
    """Return the mixture of each histogram `[n, BINS]` after so many rounds of EM from one mixture (reference 1).

    A histogram without a pixel has nan.
    """
    greys = (WIDTH * (np.arange(BINS) + 0.5))[None, :, None]
    means, deviations, shares = (np.repeat(part, len(counts), 0) for part in start)
    with np.errstate(invalid="ignore"):
        for _ in range(rounds):
            distances = np.square(greys - means[:, None])
            density = shares[:, None] * np.exp(-distances / (2 * deviations[:, None, None] ** 2)) + 1e-300
            own = density / density.sum(2, keepdims=True) * counts[:, :, None]
            numbers = own.sum(1)
            shares = numbers / numbers.sum(1, keepdims=True)
            means = (own * greys).sum(1) / np.maximum(numbers, 1e-9)
            spread = (own * np.square(greys - means[:, None])).sum((1, 2)) / numbers.sum(1)
            deviations = np.sqrt(spread).clip(min=SMALLEST_DEVIATION)
    order = means.argsort(1)
    return Mixture(np.take_along_axis(means, order, 1), deviations, np.take_along_axis(shares, order, 1))
