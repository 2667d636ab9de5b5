"""Codes -> NLL of every code under its prior, brought up to pixels, as files and pictures: what a prior finds unusual.

A code's NLL is -log2 p(code | codes before it in raster order, the top codes for a bottom one, what is known of the
image). Summed over an image it is what an ideal coder needs for the codes. Several code maps may decode to one image,
whose probability is the sum of theirs: the sum of one's NLL is therefore an upper bound on the code length of the
decoded image (and says nothing of what the decoder lost). Where NLL is high, the model is surprised [1].

NOTE Such a map looks in one direction: what comes after something unusual in raster order may be surprising too,
and what has been announced by its upper neighbours is less so.

[1] Marimont and Tarroni 2020, Anomaly detection through latent space restoration using vector-quantized variational
autoencoders.

<out>/likelihood/index.csv        image, subject, file, bits per code of each level, bits per pixel
<out>/likelihood/<file>.npy       float32 [levels, height, width], coarse first: NLL in bits per code, a code's value in
                                  all pixels of its cell
<out>/likelihood/<file>.png       the image, each level's map, and their sum in bits per pixel
<out>/likelihood.png              the same of evenly chosen images
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.common.progress import Bar
from vqvae2.images.dataset import ImageSet, to_bytes, unique_names
from vqvae2.models import autoencoder, code_maps, encoding
from vqvae2.plots import pictures
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.priors.settings import PREVIOUS_MM
from vqvae2.training import neighbours

INDEX = "index.csv"
# The values that get the brightest colour: pictures can be compared. A blind guess among 512 codes costs 9 bits; at the
# default grids, 0.7 per pixel.
BITS_PER_CODE, BITS_PER_PIXEL = 16.0, 1.0


@torch.no_grad()
def code_bits(priors: Mapping[str, Prior], levels: Mapping[str, torch.Tensor], facts: Sequence[Mapping[str, str]],
              batch: int, on_batch: Callable[[int], object] = lambda _: None, *,
              tell_previous: bool = False) -> dict[str, torch.Tensor]:
    """Return for each level that has a prior the NLL of each code, float32 `[n, height, width]`, in bits, on the CPU.

    Args:
        priors: by level, in eval mode.
        levels: codes `[n, height, width]` by level, the top's too where only the bottom has a prior.
        facts: for each of the n images what the manifest says of it; what a prior was trained to know and is not
            there is unknown.
        batch: images at a time. on_batch: told how many images a level has done since.
        tell_previous: a prior that was trained with --condition previous-slice is told the codes of the nearest slice
            of the same scan among these images, as in its validation, where `facts` say which that is.
    """
    found = {}
    for level, prior in priors.items():
        device, parts = prior.bias.device, []
        known = conditions.numbers(prior.columns, facts) if prior.columns else None
        previous = _previous(prior, levels[level], facts, known) if tell_previous else None
        for items in torch.arange(len(levels[level])).split(batch):
            codes = levels[level][items].to(device)
            top = levels["top"][items].to(device) if level == "bottom" else None
            logits = prior.logits(codes, top, None if known is None else known[items].to(device),
                                  None if previous is None else previous[items].to(device).long())
            nats = functional.cross_entropy(logits.float(), codes, reduction="none")
            parts.append((nats / math.log(2)).cpu())
            on_batch(len(items))
        found[level] = torch.cat(parts)
    return found


def _previous(prior: Prior, codes: torch.Tensor, facts: Sequence[Mapping[str, str]],
              known: torch.Tensor | None) -> torch.Tensor | None:
    """Return the codes of each image's nearest neighbour `[n, height, width]`, -1 where there is none, and write into
    `known` how far away it is; None where the prior is told no such codes, or nothing says which they are."""
    numbers = [number for number, column in enumerate(prior.columns) if column.name == PREVIOUS_MM]
    if not numbers or not all(row.get(name) for row in facts for name in neighbours.NEEDED):
        return None
    try:
        items, offsets_mm = neighbours.Neighbours(facts).nearest(np.arange(len(facts)))
    except UserError:  # one slice of each scan
        return None
    known[:, numbers[0]] = torch.from_numpy(offsets_mm) / prior.columns[numbers[0]].spread
    return codes[items].masked_fill(torch.from_numpy(items < 0)[:, None, None], -1)


def both_ways(model: autoencoder.Vqvae, priors: Mapping[str, Prior], images: ImageSet, batch: int,
              maps: code_maps.CodeMaps | None = None, on_batch: Callable[[int], object] = lambda _: None,
              ) -> dict[str, torch.Tensor]:
    """Return for each level float32 `[n, height, width]`, the NLL in bits at each place: the mean of the image's code
    there and of its mirror image's.

    Args:
        priors: one for each level of the model.
        maps: codes of the images, if they are there already.
        on_batch: told how many images have been encoded, or been read by a prior, since.
    """
    mirrored = dataclasses.replace(images, pixels=np.ascontiguousarray(images.pixels[..., ::-1]))
    own, other = (code_bits(priors, codes.levels, images.facts, batch, on_batch) for codes in (
        maps or encoding.extract(model, images, batch, on_batch), encoding.extract(model, mirrored, batch, on_batch)))
    return {level: (bits + other[level].flip(2)) / 2 for level, bits in own.items()}


def smoothed(maps: np.ndarray, brain: np.ndarray, share: float) -> np.ndarray:
    """Return maps `[n, height, width]` after a Gaussian mean over the pixels of the brain alone, 0 outside of it; the
    standard deviation is a share of the maps' width."""
    sigma = (0, share * maps.shape[2], share * maps.shape[2])  # images are not mixed
    weight = ndimage.gaussian_filter(brain.astype(np.float32), sigma).clip(1e-6)
    return np.where(brain, ndimage.gaussian_filter(maps * brain, sigma) / weight, 0).astype(np.float32)


def pixel_maps(by_level: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Return float32 `[n, levels, height, width]`: each level's maps `[n, height, width]`, a code's value in all pixels
    of its cell; `size` is the images' height and width, which the code maps' divide."""
    return torch.stack([codes.float().repeat_interleave(size[0] // codes.shape[1], 1)
                        .repeat_interleave(size[1] // codes.shape[2], 2) for codes in by_level.values()], 1)


def bits_per_pixel_maps(by_level: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Return float32 `[n, height, width]`, all levels together: a code's bits are shared by the pixels of its cell, so
    that the mean of a map is the image's bits per pixel. Arguments as for `pixel_maps`."""
    shares = {level: codes * (codes.shape[1:].numel() / math.prod(size)) for level, codes in by_level.items()}
    return pixel_maps(shares, size).sum(1)


def write(folder: Path, split: ImageSet, bits: Mapping[str, torch.Tensor]) -> None:
    """Write each image's maps and picture, then index.csv, into `folder`, which is <out>/likelihood.

    One image at a time: all maps at once would be as large as the data set, as floats.
    Raises: UserError if a file cannot be written.
    """
    table, names = [], unique_names(split.names)
    for number, name in enumerate(Bar(names, desc="likelihood maps", unit="image")):
        rows = rows_of(split, bits, [number])
        *levels, total = (row.values for _, row in rows[1:])
        array = torch.cat(levels).numpy()
        files.write_atomically(folder / f"{name}.npy", lambda temporary, array=array: np.save(temporary, array))
        pictures.save_picture(pictures.side_by_side([pictures.strip([row]) for row in rows]), folder / f"{name}.png")
        table.append({"image": split.names[number], "subject": split.subjects[number], "file": name,
                      **{f"{level}_bits_per_code": round(codes[number].mean().item(), 6)
                         for level, codes in bits.items()},
                      "bits_per_pixel": round(total[0].mean().item(), 6)})
    files.write_rows(folder / INDEX, table)


def rows_of(split: ImageSet, bits: Mapping[str, torch.Tensor],
            items: Sequence[int]) -> list[pictures.Row]:
    """Return rows for `pictures.strip` of the images with these numbers: image, bits per code by level, their sum."""
    size = tuple(split.pixels.shape[2:])
    chosen = {level: codes[items] for level, codes in bits.items()}
    levels = [(f"{level}, bits per code", pictures.ScaledMaps(maps, BITS_PER_CODE))
              for level, maps in zip(chosen, pixel_maps(chosen, size).unbind(1))]
    total = pictures.ScaledMaps(bits_per_pixel_maps(chosen, size), BITS_PER_PIXEL)
    return [("original", to_bytes(split.batch(items))), *levels, ("sum, bits per pixel", total)]
