"""Codes -> NLL of every code under its prior, and brought up to pixels: what the model finds unusual.

A code's NLL is -log2 p(code | codes before it in raster order, the top codes for a bottom one, what is known of the
image). Summed over an image it is what an ideal coder needs for the codes. Several code maps may decode to one image,
whose probability is the sum of theirs: the sum of one's NLL is therefore an upper bound on the code length of the
decoded image (and says nothing of what the decoder lost). Where NLL is high, the model is surprised [1].

NOTE Such a map looks in one direction: what comes after something unusual in raster order may be surprising too,
and what has been announced by its upper neighbours is less so.

[1] Marimont and Tarroni 2020, Anomaly detection through latent space restoration using vector-quantized variational
autoencoders.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import Prior


@torch.no_grad()
def code_bits(priors: Mapping[str, Prior], levels: Mapping[str, torch.Tensor], facts: Sequence[Mapping[str, str]],
              batch: int, on_batch: Callable[[int], object] = lambda _: None) -> dict[str, torch.Tensor]:
    """Return for each level that has a prior the NLL of each code, float32 `[n, height, width]`, in bits, on the CPU.

    Args:
        priors: by level, in eval mode.
        levels: codes `[n, height, width]` by level, the top's too where only the bottom has a prior.
        facts: for each of the n images what the manifest says of it; what a prior was trained to know and is not
            there is unknown.
        batch: images at a time. on_batch: told how many images a level has done since.
    """
    found = {}
    for level, prior in priors.items():
        device, parts = prior.bias.device, []
        known = conditions.numbers(prior.columns, facts) if prior.columns else None
        for items in torch.arange(len(levels[level])).split(batch):
            codes = levels[level][items].to(device)
            top = levels["top"][items].to(device) if level == "bottom" else None
            logits = prior(codes, top, None if known is None else known[items].to(device))
            nats = functional.cross_entropy(logits.float(), codes, reduction="none")
            parts.append((nats / math.log(2)).cpu())
            on_batch(len(items))
        found[level] = torch.cat(parts)
    return found


def pixel_maps(by_level: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Return float32 `[n, levels, height, width]`: each level's maps `[n, height, width]`, a code's value in all pixels
    of its cell; `size` is the images' height and width, which the code maps' divide."""
    def enlarged(one: torch.Tensor) -> torch.Tensor:
        return one.repeat_interleave(size[0] // one.shape[1], 1).repeat_interleave(size[1] // one.shape[2], 2)

    return torch.stack([enlarged(one.float()) for one in by_level.values()], 1)


def bits_per_pixel_maps(by_level: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Return float32 `[n, height, width]`, all levels together: a code's bits are shared by the pixels of its cell, so
    that the mean of a map is the image's bits per pixel. Arguments as for `pixel_maps`."""
    shares = {level: one * (one.shape[1] * one.shape[2] / (size[0] * size[1])) for level, one in by_level.items()}
    return pixel_maps(shares, size).sum(1)
