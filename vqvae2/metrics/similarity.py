"""Images and their reconstructions -> SSIM, MS-SSIM, PSNR and mean absolute error, each with unit and range.

Figures of images are taken on 8 bit and twice: `full` is the whole picture; `brain` is the pixels where the
original is above 0, holes filled, because a black background that is easy to restore flatters the first.

1. Wang, Bovik, Sheikh, Simoncelli 2004, Image quality assessment: from error visibility to structural similarity.
2. Wang, Simoncelli, Bovik 2003, Multiscale structural similarity for image quality assessment.

NOTE: SSIM is computed here in float64 by two 1-D windows (matrix products), not by torchmetrics. In float32 the small
difference E[x²] - E[x]² suffers where convolutions are rounded: on five 128² slices SSIM fell by 0.0004 to 0.0008 with
inputs rounded as TF32 does (the default on recent GPUs; imitated on a CPU) and by 0.001 to 0.011 under bf16 autocast.
torchmetrics in float64 takes 25 times as long on a CPU, and does not give the contrast map that the brain's MS-SSIM
needs. The tests hold ours to scikit-image and torchmetrics.
NOTE: MS-SSIM leaves the 5-pixel border out at every scale; torchmetrics keeps it, mirrored, at the coarsest.
"""

import math

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vqvae2.common import machine

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # reference 1, sections III.B and III.C
BORDER = WINDOW // 2
AT_A_TIME = 16
"""Images whose figures are computed together: more need longer, since they do not fit into the processor's cache."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # reference 2, section 3.2, finest scale first
SMALLEST_MSE = 1e-10
"""Floor under the mean squared error: equal images have 100 dB. One pixel of a 256² image that is one step of 8 bit
off has 96 dB."""


def image_figures(originals: torch.Tensor, reconstructions: torch.Tensor, *, brain: torch.Tensor | None = None,
                  multiscale: bool = True) -> dict[str, dict[str, torch.Tensor]]:
    """Return {"full", "brain"} -> {"ssim", "ms_ssim", "psnr", "mae"} -> one value per image.

    Args:
        originals: uint8 `[n, channels, height, width]`, on any device; n may be 0.
        reconstructions: likewise.
        brain: `brain_mask` of the originals, where it is there already.
        multiscale: whether ms_ssim is computed too, which takes a quarter of the time; nan without it.
    Returns: float64 `[n]` on the CPU.
        ssim: -1…1, 1 is equal: the mean of the SSIM map without its 5-pixel border, over the area.
        ms_ssim: 0…1: see `ms_ssim_scales`. For `brain` the mask shrinks with the images, by the same 2 x 2 means,
            and is the weight of each place of the scale's map.
        psnr: dB, at most 100 (see SMALLEST_MSE), data range 1; over all pixels of the area, border included.
        mae: mean absolute error on the range 0…1; likewise.
        nan where the area is empty, and for ssim and ms_ssim of images with a side under 11 pixels.
    Raises: TypeError or ValueError if the two are not uint8 of one shape.
    Source: references 1 and 2; SSIM equals scikit-image's with `gaussian_weights=True, use_sample_covariance=False`.
    """
    _check(originals, reconstructions)
    sets = originals, reconstructions, brain_mask(originals) if brain is None else brain
    parts = [_figures(*some, multiscale) for some in zip(*(images.split(AT_A_TIME) for images in sets))]
    return {area: {name: torch.cat([part[name] for part in parts])[:, number].contiguous() for name in parts[0]}
            for number, area in enumerate(("full", "brain"))}


def _figures(originals: torch.Tensor, reconstructions: torch.Tensor, brain: torch.Tensor,
             multiscale: bool) -> dict[str, torch.Tensor]:
    """Return the figures of `image_figures` by name, `[n, 2]`, on the CPU: of the full picture and of the brain."""
    first, second = _as_float64(originals, reconstructions)
    areas = torch.stack([torch.ones_like(brain), brain], 1).to(first)
    single, product = _structural_similarities(first, second, areas, multiscale)
    mse = _mean_over((first - second).square().mean(1), areas).clamp(min=SMALLEST_MSE)
    mae = _mean_over((first - second).abs().mean(1), areas)
    return {"ssim": single.cpu(), "ms_ssim": product.cpu(), "psnr": -10 * mse.log10().cpu(), "mae": mae.cpu()}


def ssim(originals: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Return `image_figures(…)["full"]["ssim"]` alone, at a third of the time: for watching a training run."""
    _check(originals, reconstructions)
    first, second = _as_float64(originals, reconstructions)
    if min(first.shape[-2:]) < WINDOW:
        return torch.full((len(first),), math.nan, dtype=torch.float64)
    return similarity_maps(first, second)[0].mean((1, 2)).cpu()


def brain_mask(originals: torch.Tensor) -> torch.Tensor:
    """Return bool `[n, height, width]`, on the CPU: where any channel is above 0, holes filled.

    `originals` is `[n, channels, height, width]`. A hole is background that 4-neighbours do not join to the edge.
    """
    from scipy.ndimage import binary_fill_holes  # takes half a second, which a refusal and --help need not wait for
    above = (originals > 0).any(1).cpu().numpy()
    return torch.from_numpy(np.array([binary_fill_holes(image) for image in above], dtype=bool).reshape(above.shape))


def ms_ssim_scales(size: int) -> list[float]:
    """Return the weights of the scales of MS-SSIM, finest first, sum 1, for images of smaller side `size` pixels.

    As many of the five scales as leave the image at least as wide as the 11-pixel window, weights renormalised:
    5 from 176 pixels (256²), 4 from 88 (128²), 3 from 44 (64²), 2 from 22 (32²), 1 (plain SSIM) from 11, else none.
    Each scale is half of the scale before, by 2 x 2 means. The product is over mean contrast-structure to the power
    of the weight, and at the coarsest scale mean SSIM (reference 2, equation 7); means below 0 count as 0.
    """
    weights = [weight for scale, weight in enumerate(SCALE_WEIGHTS) if size >> scale >= WINDOW]
    return [weight / sum(weights) for weight in weights]


def _check(originals: torch.Tensor, reconstructions: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless both are uint8 images of one shape."""
    for name, images in (("originals", originals), ("reconstructions", reconstructions)):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TypeError(f"{name}: expected uint8 [n, channels, height, width], found {images.dtype} "
                            f"{list(images.shape)}.")
    if originals.shape != reconstructions.shape:
        raise ValueError(f"reconstructions: expected shape {list(originals.shape)}, "
                         f"found {list(reconstructions.shape)}.")


def _as_float64(originals: torch.Tensor, reconstructions: torch.Tensor) -> list[torch.Tensor]:
    """Return two sets of uint8 images as float64 in 0…1, on the CPU where the device (MPS) has no float64."""
    device = "cpu" if originals.device.type == "mps" else originals.device
    return [images.to(device).double() / 255 for images in (originals, reconstructions)]


def _mean_over(values: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """Return the mean of `[n, height, width]` over areas `[n, areas, height, width]`, weights 0…1: `[n, areas]`; nan
    over an empty area."""
    return (values[:, None] * areas).sum((2, 3)) / areas.sum((2, 3))


def similarity_maps(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return SSIM and its contrast-structure factor (reference 1, equation 13) of two float images of one shape and
    type, 0…1, `[n, channels, height, width]`: two maps `[n, height - 10, width - 10]`, only places where the whole
    window lies in the image; mean over channels. Sides are at least 11."""
    down, across = (_window_matrix(size, first) for size in first.shape[-2:])

    def local_mean(images: torch.Tensor) -> torch.Tensor:
        return down @ images @ across.T

    mean_1, mean_2 = local_mean(first), local_mean(second)
    variances = local_mean(first.square() + second.square()) - mean_1.square() - mean_2.square()
    covariance = local_mean(first * second) - mean_1 * mean_2
    contrast = (2 * covariance + K2**2) / (variances + K2**2)
    luminance = (2 * mean_1 * mean_2 + K1**2) / (mean_1.square() + mean_2.square() + K1**2)
    return (luminance * contrast).mean(1), contrast.mean(1)


def mean_similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the means `[n]` of the SSIM maps of `similarity_maps`, with a gradient for `first` alone."""
    return _MeanSimilarity.apply(first, second)


class _MeanSimilarity(torch.autograd.Function):
    """Images -> their mean SSIM; the gradient is computed with it, while the maps that it needs are there.

    On a CPU the n images become n channels, so that one instruction is for the same pixel of many images and a mean of
    neighbours is a convolution of each channel by itself. It takes a tenth of the time of a product with a matrix, and
    autograd's own way through the same maps takes twice the time of this one (docs/benchmarks.md).
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return `[n]` of two float images `[n, channels, height, width]` in 0…1."""
        channels = first.shape[1]
        by_channels = first.device.type == "cpu" and len(first) > 1  # one channel alone is slow
        layout = torch.channels_last if by_channels else torch.contiguous_format
        first, second = (images.transpose(0, 1).contiguous(memory_format=layout) for images in (first, second))
        local_mean = _local_mean_by_channels if by_channels else _local_mean_by_matrices
        maps = torch.cat([first, second, first.square().addcmul_(second, second), first * second])
        mean_1, mean_2, squares, products = local_mean(maps).split(channels)
        # Reference 1, equation 13: luminance is light_1 / light_2, contrast is contrast_1 / contrast_2.
        both, own = mean_1 * mean_2, mean_1.square().addcmul_(mean_2, mean_2)
        contrast_1, contrast_2 = (products - both).mul_(2).add_(K2**2), (squares - own).add_(K2**2)
        light_1, light_2 = both.mul_(2).add_(K1**2), own.add_(K1**2)
        share = (light_2 * contrast_2).reciprocal_()
        similarity = light_1 * contrast_1 * share
        if ctx.needs_input_grad[0]:
            of_products = light_1 * share
            of_squares = light_2 * share * similarity
            of_mean = (contrast_1 - light_1).mul_(mean_2)
            of_mean.addcmul_((light_2 - contrast_2).mul_(similarity), mean_1).mul_(share)
            of_mean, of_squares, of_products = local_mean(
                torch.cat([of_mean, of_squares, of_products]), transposed=True).split(channels)
            gradient = of_mean.addcmul_(first, of_squares, value=-1).addcmul_(second, of_products)
            gradient.mul_(2 / (channels * math.prod(similarity.shape[2:])))
            ctx.save_for_backward(gradient.transpose(0, 1).contiguous())
        return similarity.mean((0, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, of_means: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of the first images."""
        gradient, = ctx.saved_tensors
        return gradient * of_means[:, None, None, None], None


def _local_mean_by_channels(maps: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """Return the means of neighbours of `[maps, n, height, width]`, 10 pixels less across and down; or `transposed`,
    the gradient of `[maps, n, height + 10, width + 10]` for which theirs is `maps`."""
    across = _window(maps).expand(maps.shape[1], 1, 1, WINDOW)
    for kernel in (across.transpose(2, 3), across):
        padding = [(size - 1) * transposed for size in kernel.shape[2:]]
        maps = functional.conv2d(maps, kernel, padding=padding, groups=maps.shape[1])
    return maps


def _local_mean_by_matrices(maps: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """Return the same by products with matrices, which a GPU never rounds to TF32."""
    down, across = (_window_matrix(size + 2 * BORDER * transposed, maps) for size in maps.shape[-2:])
    return down.T @ maps @ across if transposed else down @ maps @ across.T


def _window(like: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian window `[11]`, sum 1."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - BORDER
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return machine.to_device((window / window.sum()).to(like.dtype), like.device)


def _window_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return `[size - 10, size]`, whose row i has the Gaussian window around place i + 5: a product with the matrix is
    a weighted mean of neighbours. The product is faster than a convolution of one channel, forward and backward, and
    never rounded to TF32."""
    rows = torch.arange(size - 2 * BORDER, device=like.device)[:, None]
    matrix = like.new_zeros(size - 2 * BORDER, size)
    matrix[rows, rows + torch.arange(WINDOW, device=like.device)] = _window(like)
    return matrix


def _structural_similarities(first: torch.Tensor, second: torch.Tensor, areas: torch.Tensor,
                             multiscale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return SSIM and MS-SSIM over areas `[n, areas, height, width]`, weights 0…1: `[n, areas]` each."""
    weights = ms_ssim_scales(min(first.shape[-2:]))
    single = torch.full(areas.shape[:2], math.nan).to(first)
    product = torch.ones_like(single) if weights else single
    for scale, weight in enumerate(weights):
        similarity, contrast = similarity_maps(first, second)
        inner = areas[..., BORDER:-BORDER, BORDER:-BORDER]
        mean_similarity = _mean_over(similarity, inner)
        single = mean_similarity if scale == 0 else single
        if not multiscale:
            return single, torch.full_like(single, math.nan)
        factor = mean_similarity if scale == len(weights) - 1 else _mean_over(contrast, inner)
        product = product * factor.clamp(min=0) ** weight
        first, second, areas = (functional.avg_pool2d(images, 2) for images in (first, second, areas))
    return single, product
