"""Two sets of images -> whether they have the same detail and the same edges, beside figures of whole images.

Pictures that are too soft lack power at high spatial frequencies. Grain gives that power back without one sharper edge,
and brings most other figures of samples near those of real images. So there are two figures, and what betters one of
them alone is no improvement: grain mends the spectrum and moves the edges away, noise and sharpening spoil both.

Both compare sets, not images. In each, images of one subject count as one group: intervals are from drawing subjects.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common.statistics import bootstrap

AT_A_TIME = 32
"""Images that are looked at together: more need more memory, and longer, since they do not fit into the cache."""
CYCLES = 8
"""Width of a band of frequencies, in cycles a picture."""
BINS, STEEPEST = 512, 10.0
"""The histogram of gradients has this many bins, and counts gradients from 10 times the mean on in the last one."""
LIT = 0.05
"""Grey, on the range 0…1, that the mean of a pixel and its 8 neighbours must exceed; the rest is background."""
SCALES = {"fine": 1, "coarse": 2}
"""Name of each scale of edges -> the side of the squares whose means are its pixels."""


def bands(size: int) -> list[tuple[float, float]]:
    """Return the bands of frequencies, in cycles a picture of `size` pixels: of 8 each, up to Nyquist's frequency."""
    edges = [*range(0, math.ceil(size / 2), CYCLES), size / 2]
    return list(itertools.pairwise(edges))


def band_powers(images: torch.Tensor) -> np.ndarray:
    """Return the power of each image in each of `bands`, float64 `[n, bands]`.

    `images` is uint8 `[n, channels, height, width]`, n may be 0; of channels the mean is taken. The power of a band is
    the sum of |Fourier coefficient|² of the image, seen through a Hann window, over the frequencies whose distance from
    0 lies in the band. A picture that is not square has frequencies in cycles per its smaller side.
    """
    shape = images.shape[2:]
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in shape)
    distance = (down[:, None].square() + across.square()).sqrt().flatten() * min(shape)
    rings = torch.stack([(distance >= low) & (distance < high) for low, high in bands(min(shape))], 1).double()
    window = torch.outer(*(torch.hann_window(side, periodic=False, dtype=torch.float64) for side in shape))
    found = [torch.zeros(0, rings.shape[1], dtype=torch.float64)]
    for some in filter(len, images.split(AT_A_TIME)):
        seen = some.cpu().double().mean(1) / 255 * window
        found.append(torch.fft.fft2(seen).abs().square().flatten(1) @ rings)
    return torch.cat(found).numpy()


def gradient_shares(images: torch.Tensor, side: int = 1) -> np.ndarray:
    """Return how the gradients of each image spread: the share of its pixels in each of BINS bins, `[n, BINS]`.

    A gradient is the length of a pixel's central differences, over the mean of the image's gradients: contrast does
    not count, only whether there are few steep borders between even areas, as in tissue, or slopes of one kind
    everywhere, as in soft pictures and in grain. The bins part 0 to STEEPEST evenly. Background does not count.

    Args:
        images: uint8 `[n, channels, height, width]`, n may be 0; of channels the mean is taken.
        side: of the squares whose means are taken for pixels first, in pixels.
    Returns: float64; nan for an image without gradients, such as one of a single grey.
    """
    found = [torch.zeros(0, BINS, dtype=torch.float64)]
    for some in filter(len, images.split(AT_A_TIME)):
        grey = functional.avg_pool2d(some.cpu().double().mean(1, keepdim=True) / 255, side)[:, 0]
        down = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
        across = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
        lit = (functional.avg_pool2d(grey, 3, 1) > LIT).flatten(1).double()
        steep = (down.square() + across.square()).sqrt().flatten(1)
        pixels = lit.sum(1, keepdim=True)
        steep = steep / ((steep * lit).sum(1, keepdim=True) / pixels)
        place = (steep.nan_to_num() / STEEPEST * BINS).clamp(max=BINS - 1).long()
        found.append(torch.zeros(len(some), BINS, dtype=torch.float64).scatter_add_(1, place, lit) / pixels)
        found[-1][((steep * lit).sum(1) > 0).logical_not()] = math.nan
    return torch.cat(found).numpy()


def power_ratios(made: np.ndarray, real: np.ndarray, made_groups: Sequence[str] | None,
                 real_groups: Sequence[str] | None, seed: int) -> dict[str, list[float | None]]:
    """Return {"value", "ci_low", "ci_high"}, each a list by band: mean power of made images over that of real images.

    1 is as much detail of this size as real images have, less is too soft, more is noise.

    Args:
        made, real: of `band_powers`.
        made_groups, real_groups: the subject of each image; each image is its own group if None. The 95 % interval is
            from drawing groups of both sets with replacement.
        seed: of the draws.
    """
    found = [_compared(lambda ours, theirs: ours[:, 0] / theirs[:, 0], made[:, [band]], real[:, [band]], made_groups,
                       real_groups, seed) for band in range(made.shape[1])]
    return {name: [figures[name] for figures in found] for name in ("value", "ci_low", "ci_high")}


def edge_distance(made: np.ndarray, real: np.ndarray, made_groups: Sequence[str] | None,
                  real_groups: Sequence[str] | None, seed: int) -> dict[str, float | None]:
    """Return {"value", "ci_low", "ci_high"}: how far the gradients of made images are from those of real images.

    It is the Wasserstein distance of order 1 of the means of both sets' histograms, in mean gradients: by how much a
    pixel's gradient would have to change, on average, to make one the other. 0 is equal. Two sets of real images have
    a distance too, the larger the fewer subjects they have.

    Args:
        made, real: of `gradient_shares`. The others are as for `power_ratios`.
    """
    return _compared(histogram_distance, made, real, made_groups, real_groups, seed)


def histogram_distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return `edge_distance` of histograms of gradients, each `[BINS]` or `[n, BINS]`."""
    return abs((ours - theirs).cumsum(-1)).sum(-1) * STEEPEST / BINS


def _compared(figure: Callable[[np.ndarray, np.ndarray], np.ndarray], made: np.ndarray, real: np.ndarray,
              made_groups: Sequence[str] | None, real_groups: Sequence[str] | None, seed: int) -> dict:
    """Return a figure of the means of two sets `[n, numbers]`, and its interval; None where it is not defined.

    Images whose numbers are nan do not count.
    """
    sides = []
    for values, groups in ((made, made_groups), (real, real_groups)):
        kept = ~np.isnan(values).any(1)
        if not kept.any():
            return dict.fromkeys(("value", "ci_low", "ci_high"))
        values, names = values[kept], (np.arange(len(values)) if groups is None else np.asarray(groups))[kept]
        _, own = np.unique(names, return_inverse=True)
        sums = np.zeros((own.max() + 1, values.shape[1]))
        np.add.at(sums, own, values)
        sides.append((sums, np.bincount(own)))

    def drawn(*times: np.ndarray) -> np.ndarray:
        return figure(*(number @ sums / (number @ sizes)[:, None] for number, (sums, sizes) in zip(times, sides)))

    value = float(drawn(*(np.ones((1, len(sizes))) for _, sizes in sides))[0])
    low, high = bootstrap(drawn, [len(sizes) for _, sizes in sides], seed)
    return {"value": value if math.isfinite(value) else None, "ci_low": low, "ci_high": high}
