"""Images -> the same with the noise of MRI; and noisy images -> an estimate of how much noise they have.

A magnitude image is the length of a complex number whose two parts have normal noise of one deviation, so that its
noise is Rician [1]: where there is signal it is nearly normal, and black becomes grey.

[1] Gudbjartsson, Patz 1995, The Rician distribution of noisy MRI data.
[2] Donoho, Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage (the median of the finest details).
"""

import math
from collections.abc import Sequence

import torch

from vqvae2.common import random_numbers

NORMAL_MEDIAN = 0.6745
"""The median of |z|, where z is of the standard normal distribution."""
DEEP = 2
"""Pixels from the border of the brain to the first whose noise is measured: the border itself is full of detail."""


def add_rician(images: torch.Tensor, deviations: torch.Tensor, seed: int, purpose: str, numbers: Sequence[int],
               epoch: int = 0) -> torch.Tensor:
    """Return sqrt((image + n)² + m²), clipped to 0…1, where n and m are of the normal distribution.

    Args:
        images: `[batch, channels, height, width]` in 0…1.
        deviations: `[batch]`: the standard deviation of n and m in each image, on the range 0…1.
        seed, purpose, numbers, epoch: what the noise is drawn by; `numbers` has one for each image.
    """
    noise = torch.zeros(len(images), 2, *images.shape[1:])
    for own, number in zip(noise, numbers):
        torch.randn(own.shape, generator=random_numbers.generator(seed, purpose, epoch, int(number)), out=own)
    real, imaginary = (noise * deviations.float().cpu().view(-1, 1, 1, 1, 1)).to(images).unbind(1)
    return torch.hypot(images + real, imaginary).clamp(max=1)


def estimate(images: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Return `[batch]`: the deviation of the noise in the brain of each image, by the median of its finest details [2].

    Anatomy has fine details too, which count as noise; nan where no brain is deep enough.

    Args:
        images: `[batch, channels, height, width]`. brain: bool `[batch, height, width]`.
    """
    details = (images[..., :-1, :-1] - images[..., 1:, :-1] - images[..., :-1, 1:] + images[..., 1:, 1:]).abs() / 2
    near_outside = torch.nn.functional.max_pool2d((~brain).float()[:, None], 2 * DEEP + 1, stride=1, padding=DEEP)
    deep = (near_outside[..., :-1, :-1] == 0).expand_as(details)
    found = [own[inside].median().item() if inside.any() else math.nan for own, inside in zip(details, deep)]
    return torch.tensor(found, dtype=torch.float64) / NORMAL_MEDIAN
