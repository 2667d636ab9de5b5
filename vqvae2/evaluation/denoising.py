"""Noisy images -> their codes, denoised images, and how much noise is estimated before and after."""

import torch

from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import noise, similarity
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.models.denoiser import Denoiser

FAINT = 0.05
"""Grey, 0…1, up to which a denoised pixel at the border counts as background: noise is in the original's."""


@torch.no_grad()
def denoise(vqvae: Vqvae, denoiser: Denoiser, images: ImageSet) -> tuple[CodeMaps, torch.Tensor, dict]:
    """Return codes, denoised images uint8 `[n, channels, height, width]`, and `noise.estimate` inside the brain.

    All images go through the networks at once. The estimates are "before" and "after", `[n]` each, on the range 0…1.
    """
    pixels = images.batch(list(range(len(images))))
    coded, _, made = denoiser(pixels.to(next(denoiser.parameters()).device), vqvae)
    made = made.clamp(0, 1).cpu()
    brain = similarity.brain_mask(made - FAINT)
    estimates = {"before": noise.estimate(pixels, brain), "after": noise.estimate(made, brain)}
    codes = {level: found.cpu() for level, found in coded.codes.items()}
    return CodeMaps(images.names, codes), to_bytes(made), estimates
