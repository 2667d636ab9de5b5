"""Images -> their mean, and how others stand beside it: whether they lie on their side, or have another contrast.

<run>/mean.png is the mean of the training images, grey, SIDE x SIDE pixels whatever their size: too coarse to show
anybody, and enough to tell a brain from the same brain on its side, which convolutions hardly tell.

NOTE Upside down is another matter: with the weights of this project 4 % of the unseen test slices, nearly all of one
person, resemble the mean more if they are turned over, so that this is not asked.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vqvae2.common import files
from vqvae2.common.statistics import evenly
from vqvae2.images.dataset import ImageSet
from vqvae2.images.reading import read_picture

NAME, SIDE = "mean.png", 16
WITHIN, FEWEST = 0.95, 12
"""Share of an area that must be brain, lest its dark edge decide; areas that there must be."""
MOST_IMAGES = 2000
"""Chosen evenly: the mean of more would be the same."""


def coarse(images: torch.Tensor) -> torch.Tensor:
    """Return `[n, SIDE, SIDE]`, means over areas and channels of images `[n, channels, height, width]`."""
    return functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), SIDE)[:, 0]


def write(images: ImageSet, folder: Path) -> None:
    """Write the mean of the images to `folder`. Raises: UserError if it cannot be written."""
    chosen = evenly(len(images), MOST_IMAGES)
    total = sum(coarse(images.batch(items)).double().sum(0) for items in np.array_split(chosen, -(-len(chosen) // 64)))
    grey = (255 * total / len(chosen)).round().to(torch.uint8).numpy()
    files.write_atomically(folder / NAME, lambda path: Image.fromarray(grey).save(path))


def read(folder: Path) -> torch.Tensor | None:
    """Return the mean `[SIDE, SIDE]` in 0…1 that `write` wrote to `folder`; None where there is none."""
    if not (folder / NAME).is_file():
        return None
    return coarse(torch.tensor(read_picture(folder / NAME, SIDE)).float()[None] / 255)[0]


def better_turned(images: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return `[n]`: by how much an image's correlation with the mean grows if it is turned by 90 degrees, one way or
    the other; below 0 for an image as it should be. Left and right are not told apart.

    Args:
        images: `[n, channels, height, width]`. mean: `[SIDE, SIDE]`, of `read`.
    """
    def standardised(values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean((-2, -1), keepdim=True)
        return centred / centred.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-6)

    small, beside = standardised(coarse(images)), standardised(mean)
    beside = (beside + beside.flip(1)) / 2
    as_it_is, *turned = ((small.rot90(quarter, (1, 2)) * beside).mean((1, 2)) for quarter in (0, 1, 3))
    return torch.maximum(*turned) - as_it_is


def inverted(images: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return `[n]`: how much an image is dark where the mean is bright, inside the brain alone, -1…1: minus their
    correlation there, below 0 for an image as it should be; NaN where there is next to no brain.

    Args:
        images: `[n, channels, height, width]` in 0…1, black outside of the brain. mean: `[SIDE, SIDE]`, of `read`.
    """
    share = coarse((images > 0).to(images.dtype))
    inside = (share > WITHIN).to(images.dtype)
    count = inside.sum((1, 2), keepdim=True)

    def centred(values: torch.Tensor) -> torch.Tensor:
        return (values - (values * inside).sum((1, 2), keepdim=True) / count.clamp(min=1)) * inside

    own = centred(coarse(images) / share.clamp(min=WITHIN))
    beside = centred(((mean + mean.flip(1)) / 2).expand_as(share))
    spreads = (own.square().sum((1, 2)) * beside.square().sum((1, 2))).sqrt()
    found = -(own * beside).sum((1, 2)) / spreads.clamp(min=1e-6)
    return found.masked_fill(count[:, 0, 0] < FEWEST, torch.nan)
