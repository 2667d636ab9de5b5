"""Images and their reconstructions -> the terms of the VQ-VAE's reconstruction loss, one value for each image.

The squared error is always there; the others are weighed by --ssim-weight and --gradient-weight. What each of them
brings is measured in docs/results.md.

[1] Wang, Bovik, Sheikh, Simoncelli 2004, Image quality assessment: from error visibility to structural similarity.
[2] Zhao, Gallo, Frosio, Kautz 2017, Loss Functions for Image Restoration with Neural Networks (SSIM as a loss).
[3] Mathieu, Couprie, LeCun 2016, Deep multi-scale video prediction beyond mean square error (equation 6).
"""

import torch

from vqvae2.metrics import similarity


def error_of_clipped(made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return `made` - `pixels`, but 0 where a black pixel is made blacker or a white one whiter.

    Pictures are clipped to 0…1, so that nobody sees the difference, and a network that is free to go below 0
    gives exact black: half of a brain slice is background, on which SSIM counts the smallest noise.
    """
    unseen = ((pixels <= 0) & (made < 0)) | ((pixels >= 1) & (made > 1))
    return (made - pixels).masked_fill(unseen, 0)


def dissimilarity(made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return 1 - SSIM `[batch]`, 0…2, with a gradient, of float32 `[batch, channels, height, width]` ([1], [2]).

    `made` is clipped to 0…1 as pictures are. It is computed in the images' own type whatever autocast says: in bf16
    nothing would be left of a difference of squares. Raises: ValueError for sides under 11 pixels, which SSIM lacks.
    """
    if min(pixels.shape[-2:]) < similarity.WINDOW:
        raise ValueError(f"pixels: expected sides of at least {similarity.WINDOW}, found {list(pixels.shape[-2:])}.")
    with torch.autocast(pixels.device.type, enabled=False):
        return 1 - similarity.mean_similarity(made.clamp(0, 1), pixels)


def gradient_error(made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return `[batch]`: mean absolute error of the differences between neighbours, across and down added ([3]).

    It is taken of `error_of_clipped`, so that black stays free to be blacker.
    """
    error = error_of_clipped(made, pixels)
    return sum(error.diff(dim=dim).abs().flatten(1).mean(1) for dim in (2, 3))
