"""Images and maps of what is unusual in them -> pictures, whose scales are fixed so that they can be compared."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from vqvae2.plots import pictures

BITS_PER_CODE, BITS_PER_PIXEL = 16.0, 1.0
"""What gets the brightest colour. A blind guess among 512 codes costs 9 bits; at the default grids, 0.7 per pixel."""


def likelihood_rows(originals: torch.Tensor, maps: Mapping[str, torch.Tensor], total: torch.Tensor, *,
                    captions: Sequence[str] | None = None, title: str | None = None) -> Image.Image:
    """Return labelled rows: original, NLL of each level's codes, all levels together.

    Args:
        originals: uint8 `[n, channels, height, width]`.
        maps: for each level, bits per code `[n, height, width]`.
        total: bits per pixel `[n, height, width]`.
        captions: one for each image. title: stands above all.
    """
    return pictures.strip(_rows(originals, maps, total), captions=captions, title=title)


def likelihood_panels(original: torch.Tensor, maps: Mapping[str, torch.Tensor], total: torch.Tensor, *,
                      title: str | None = None) -> Image.Image:
    """Return the same of one image side by side; no argument has the first axis `n`."""
    rows = _rows(original[None], {level: one[None] for level, one in maps.items()}, total[None])
    panels = [pictures.strip([row]).convert("RGB") for row in rows]
    canvas = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height), "white")
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width
    return pictures.titled(canvas, title)


def lesion_rows(healthy: torch.Tensor, images: torch.Tensor, masks: torch.Tensor, surprise: torch.Tensor,
                error: torch.Tensor, captions: Sequence[str], *, title: str | None = None) -> Image.Image:
    """Return labelled rows: healthy image, with a lesion, where it is, the likelihood map, the reconstruction error.

    Args:
        healthy, images: uint8 `[n, channels, height, width]`.
        masks: bool `[n, height, width]`.
        surprise: bits per pixel `[n, height, width]`. error: absolute, images being 0…1, likewise.
        captions: one for each image. title: stands above all.
    """
    return pictures.strip([("original", healthy), ("with lesion", images), ("lesion", masks[:, None].byte() * 255),
                        ("bits per pixel", pictures.Scaled(surprise, BITS_PER_PIXEL)),
                        ("|difference|", pictures.Scaled(error, pictures.DIFFERENCE_SCALE))], captions=captions, title=title)


def _rows(originals: torch.Tensor, maps: Mapping[str, torch.Tensor],
          total: torch.Tensor) -> list[tuple[str, torch.Tensor | pictures.Scaled]]:
    levels = [(f"{level}, bits per code", pictures.Scaled(one, BITS_PER_CODE)) for level, one in maps.items()]
    return [("original", originals), *levels, ("sum, bits per pixel", pictures.Scaled(total, BITS_PER_PIXEL))]
