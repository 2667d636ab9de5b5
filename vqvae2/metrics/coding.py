"""Codes, or what a prior says of them -> how many are in use, and bits."""

import math
from collections.abc import Sequence

import torch


def code_counts(codes: torch.Tensor, size: int) -> torch.Tensor:
    """Return how often each code stands in `codes` (integers in [0, size), any shape, may be empty): int64 `[size]`.

    Add the counts of all batches and ranks before any figure is taken from them: means of figures are other numbers.
    Raises: ValueError for a code outside [0, size).
    """
    flat = codes.flatten()
    if flat.numel() and (flat.min() < 0 or flat.max() >= size):
        raise ValueError(f"codes: expected integers in [0, {size}), found {flat.min()} to {flat.max()}.")
    # In parts: as int64 the codes of half a million images are four times as large as the int16 that hold them.
    return sum((torch.bincount(part.long(), minlength=size) for part in flat.split(2**20)),
               torch.zeros(size, dtype=torch.long, device=codes.device))


def codebook_figures(counts: torch.Tensor) -> dict:
    """Return {"size", "used", "perplexity"} of a codebook from its `code_counts`, summed over the split and all ranks.

    used: codes that stand somewhere, 1…size. perplexity: exp of the codes' entropy, 1 (collapsed) to size (even use).
    Raises: ValueError if no code was counted.
    Source: entropy as in Cover and Thomas 2006, section 2.1.
    """
    counts = counts.detach().cpu().double()
    if counts.sum() == 0:
        raise ValueError(f"counts: expected at least 1 code, found 0 in a codebook of {len(counts)}.")
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    return {"size": len(counts), "used": int((counts > 0).sum()), "perplexity": perplexity}


def bits_per_pixel(top_bits_per_code: float, bottom_bits_per_code: float, top_codes: int, bottom_codes: int,
                   pixels: int) -> float:
    """Return NLL of an image's codes, both levels together, in bits per pixel.

    `top_codes`, `bottom_codes` and `pixels` are numbers per image. With one level the bottom's two are 0.
    """
    return (top_bits_per_code * top_codes + bottom_bits_per_code * bottom_codes) / pixels


def raw_bits_per_pixel(codebook_sizes: Sequence[int], code_map_shapes: Sequence[tuple[int, int]],
                       pixels: int) -> float:
    """Return what an image's codes cost without a prior: log2(size) bits each, in bits per pixel.

    One size and one (height, width) per level. Two codebooks of 512, code maps of 32² and 64², 256² pixels:
    9 x (1024 + 4096) / 65536 = 0.703.
    """
    bits = [math.log2(size) * height * width for size, (height, width) in zip(codebook_sizes, code_map_shapes)]
    return sum(bits) / pixels
