"""Images -> code maps, shared out over the ranks; and how much the codes of each level carry."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from vqvae2.common import distributed, random_numbers
from vqvae2.common.errors import expect
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import coding, similarity
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps


@torch.no_grad()
def extract(model: Vqvae, images: ImageSet, batch: int, on_batch: Callable[[int], object] = lambda _: None,
            change: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
            kind: torch.dtype = torch.int64) -> CodeMaps:
    """Return the codes of all `images`; every rank encodes its share, and all get the whole.

    Args:
        batch: images at a time. on_batch: called with the number of images that this rank has done since its last call.
        change: a function that changes pictures first: (images `[n, c, h, w]` in 0…1, item numbers) -> images.
        kind: the integers that hold the codes.
    """
    device = next(model.parameters()).device
    mine = np.arange(distributed.rank(), len(images), distributed.world_size())
    parts: list[dict[str, np.ndarray]] = []
    for items in np.array_split(mine, max(1, -(-len(mine) // batch))) if len(mine) else ():
        pixels = images.batch(items)
        codes = model.encode((pixels if change is None else change(pixels, items)).to(device))
        parts.append({level: level_codes.cpu().numpy().astype(np.int16) for level, level_codes in codes.items()})
        on_batch(len(items))
    own = {level: np.concatenate([part[level] for part in parts]) for level in model.levels} if parts else {}
    shares, levels = distributed.gather_objects(own), {}
    for level, first in shares[0].items():  # rank r holds items r, r + ranks, …: they are put back in order
        levels[level] = torch.zeros(len(images), *first.shape[1:], dtype=kind)
        for rank, share in enumerate(filter(None, shares)):
            levels[level][rank::len(shares)] = torch.from_numpy(share[level])
    return CodeMaps(images.names, levels)


@torch.no_grad()
def reconstruct(model: Vqvae, images: ImageSet, batch: int,
                on_batch: Callable[[int], object] = lambda _: None) -> tuple[CodeMaps, torch.Tensor]:
    """Return the codes of all `images`, and the images that the codes alone give back, uint8 on the CPU: what a user
    of the codes would see. Arguments as for `extract`."""
    maps = extract(model, images, batch, on_batch)
    return maps, decoded(model, maps.levels, batch)


@torch.no_grad()
def decoded(model: Vqvae, levels: Mapping[str, torch.Tensor], batch: int, *, softly: bool = False) -> torch.Tensor:
    """Return the images of codes, uint8 `[n, channels, height, width]` on the CPU, decoded `batch` at a time.

    softly: without the texture decoder, even where there is one.
    """
    device, count = next(model.parameters()).device, len(levels["top"])
    return torch.cat([to_bytes(model.decode({level: codes[items].to(device).long() for level, codes in levels.items()},
                                            softly=softly)) for items in torch.arange(count).split(batch)])


def code_figures(model: Vqvae, images: ImageSet, codes: CodeMaps, batch: int, seed: int = 0,
                 with_shuffle_drop: bool = True, ssim: float | None = None) -> dict[str, dict[str, float]]:
    """Return for each level {"size", "used", "perplexity", "shuffle_drop"} over the images of a split.

    The shuffle drop is the mean full-picture SSIM that is lost when one level's maps are exchanged between
    images (in a seeded ring: none keeps its own) and the other level's stay: 0 means that the
    level's codes, however many are in use, say nothing. Every rank must call this; all get the same.
    """
    figures = {level: coding.codebook_figures(coding.code_counts(maps, model.settings.codebook_size))
               for level, maps in codes.levels.items()}
    if with_shuffle_drop:
        ring = torch.randperm(len(images), generator=random_numbers.generator(seed, "exchange of maps"))
        order = torch.empty_like(ring)
        order[ring] = ring.roll(1)
        kept = _mean_ssim(model, images, codes.levels, batch) if ssim is None else ssim
        for level in codes.levels:
            exchanged = {**codes.levels, level: codes.levels[level][order]}
            figures[level]["shuffle_drop"] = kept - _mean_ssim(model, images, exchanged, batch)
    return figures


def fewest_codes(codebook_size: int) -> int:
    """Return how many codes of a level must be in use for a prior to learn them: 8, or 2 % of the codebook."""
    return max(min(8, codebook_size), math.ceil(0.02 * codebook_size))


def check_codebook_use(figures: dict[str, dict[str, float]], name: str) -> list[str]:
    """Return warnings about levels in which few codes are in use on the training split.

    Raises: UserError below `fewest_codes`: a prior of such codes would learn nothing.
    """
    warnings = []
    for level, found in figures.items():
        size, used = int(found["size"]), int(found["used"])
        expect(used >= fewest_codes(size), f"--vqvae {name}", f"at least {fewest_codes(size)} of {size} {level} codes "
               "in use on the training images", f"{used}: its codebook has collapsed",
               "Train the VQ-VAE longer, or with more --start-steps.")
        if used < 0.10 * size:
            warnings.append(f"warning: only {used} of {size} {level} codes are in use on the training images. "
                            "A longer training or more --start-steps would help.")
    return warnings


@torch.no_grad()
def _mean_ssim(model: Vqvae, images: ImageSet, levels: dict[str, torch.Tensor], batch: int) -> float:
    device = next(model.parameters()).device
    mine = torch.arange(len(images))[distributed.rank()::distributed.world_size()]
    parts = []
    for items in mine.split(batch) if len(mine) else ():
        decoded = model.decode({level: codes[items].to(device).long() for level, codes in levels.items()}, softly=True)
        parts.append(similarity.ssim(to_bytes(images.batch(items)), to_bytes(decoded)))
    total = torch.cat(parts).sum().item() if parts else 0.0  # of all at once, so that the batch changes no digit
    return sum(distributed.gather_objects(total)) / len(images)
