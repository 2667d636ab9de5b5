"""Images, a VQ-VAE and its priors -> the images as the priors would have them, and maps of what was changed for that.

Codes that the priors find unlikely are drawn anew, several times, and decoded: each completion shows what a brain like
those of training could look like there [1, 2]. What differs from all completions is what does not belong.

1. Where the NLL of a code, read both ways (`surprise.both_ways`), is above a threshold in bits, it is to be drawn; the
   bottom codes at a top code that is drawn, and next to them, are drawn too, for they add detail to another picture.
2. Half of the completions keep the top codes: they have the anatomy of the image, and new detail. Where a lesion is
   small, these are the nearer ones. In the other half top codes are drawn too: only these move a ventricle back.
3. map = mean over both halves of sum_d w_d |image - completion_d|, w = softmax(-NEARNESS distance_d), where distance_d
   is the mean |difference| inside the brain [1]: completions that are unlike the image elsewhere count
   less. Then a light smoothing inside the brain.

Example: an image of 64 x 64 pixels has 64 top codes and 256 bottom codes, of which about 10 % and 42 % are unlikely.
Every image is told what is known of it (its position), if the priors were trained to know.

NOTE Departures from [1]: (2); the reading of both directions; and differences are from the image itself, not from its
reconstruction, although what the codes cannot say then counts too. What each brought is in docs/volumes.md, chosen on
validation images.
NOTE Priors draw in the precision that they are given in; the last bits, and with them once in thousands of draws a
code, may depend on `batch`. Random numbers come from (seed, number of the image, number of the completion).

[1] Marimont and Tarroni 2020, Anomaly detection through latent space restoration using vector-quantized variational
    autoencoders.
[2] Pinaya et al. 2021, Unsupervised brain anomaly detection and segmentation with transformers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vqvae2.evaluation import surprise
from vqvae2.images.dataset import ImageSet, from_bytes
from vqvae2.metrics import similarity
from vqvae2.models import autoencoder, encoding
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.runs.log import LOG, read_log
from vqvae2.sampling import sampler
from vqvae2.sampling.inpainting import TO_DRAW

THRESHOLD = 5.0  # bits per code; chosen on validation images, as are the numbers below
NEARNESS = 100.0
# Standard deviations, as a share of the image's width: 3.5 and 7 mm at a field of view of 224 mm.
SMOOTHING, LIKELIHOOD_SMOOTHING = 1 / 64, 1 / 32
DRAWS = 8


@dataclass(frozen=True)
class Restored:
    """These are restored images.

    Attributes:
        maps: float32 `[n, height, width]` in 0…1: the weighted mean |image - completion|; 0 outside of the brain.
        bits: float32 `[n, height, width]`: NLL of the codes in bits per pixel, smoothed by LIKELIHOOD_SMOOTHING.
    """

    maps: np.ndarray
    bits: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """Return maps times bits, float32 `[n, height, width]`: high where an image differs from its completions and
        its codes are unlikely. It finds bright and dark lesions better than maps do, and has no unit."""
        return self.maps * self.bits


@torch.no_grad()
def restore(vqvae: TrainedVqvae, priors: Mapping[str, Prior], images: ImageSet, *, draws: int = DRAWS, seed: int = 0,
            batch: int = 64, threshold: float = THRESHOLD, codes: CodeMaps | None = None,
            bits: Mapping[str, torch.Tensor] | None = None, on_codes: Callable[[int], object] = lambda _: None,
            ) -> Restored:
    """Draw unlikely codes of images anew and return where, and by how much, the images then differ.

    Args:
        priors: one for each level of the VQ-VAE, top first, in eval mode.
        draws: completions of each image, at least 2; half of them keep the top codes.
        batch: completions at a time.
        threshold: bits above which a code is drawn anew.
        codes, bits: the images' codes and `surprise.both_ways` of them, if they are there already.
        on_codes: told how many codes are settled since; there are `codes_to_settle` in all.
    An image without an unlikely code costs no draws: its completions are its reconstruction.
    """
    model, facts = vqvae.model, images.facts
    codes = codes or encoding.extract(model, images, batch)
    bits = bits or surprise.both_ways(model, priors, images, batch, codes)
    pixels = images.batch(np.arange(len(images)))
    brain = similarity.brain_mask(torch.from_numpy(images.pixels > 0))
    reconstructed = (pixels - from_bytes(encoding.decoded(model, codes.levels, batch, softly=True))).abs().mean(1)
    each, halves = sum(maps[0].numel() for maps in codes.levels.values()), []
    # A model of one level has no detail apart from its top codes, and all completions are of the second kind.
    for keeps_top, numbers in zip((True, False)[-len(model.levels):],
                                  np.array_split(np.arange(draws), len(model.levels))):
        difference = reconstructed.clone()
        gaps = with_gaps(codes.levels, bits, threshold, keeps_top)
        is_open = torch.stack([(maps == TO_DRAW).flatten(1).any(1) for maps in gaps.values()]).any(0)
        on_codes(int((~is_open).sum()) * len(numbers) * each)
        at_a_time = max(1, batch // len(numbers))
        for items in is_open.nonzero()[:, 0].split(at_a_time) if is_open.any() else ():
            known = {level: conditions.numbers(prior.columns, [facts[item] for item in items])
                     for level, prior in priors.items()}
            made = _completions(model, priors, {level: maps[items] for level, maps in gaps.items()}, items.tolist(),
                                numbers.tolist(), seed, known, on_codes)
            difference[items] = weighted_difference(pixels[items], made, brain[items])
        halves.append(difference)
    maps = surprise.smoothed(torch.stack(halves).mean(0).numpy(), brain.numpy(), SMOOTHING)
    likelihood = surprise.bits_per_pixel_maps(bits, tuple(pixels.shape[2:])).numpy()
    return Restored(maps, surprise.smoothed(likelihood, brain.numpy(), LIKELIHOOD_SMOOTHING))


def codes_to_settle(vqvae: TrainedVqvae, images: ImageSet, draws: int = DRAWS) -> int:
    """Return how many codes `restore` settles, all completions together."""
    return len(images) * draws * sum(map(math.prod, vqvae.model.grids(images.pixels.shape[2:]).values()))


def with_gaps(levels: Mapping[str, torch.Tensor], bits: Mapping[str, torch.Tensor], threshold: float,
              keeps_top: bool) -> dict[str, torch.Tensor]:
    """Return the codes of each level `[n, height, width]` with -1 where one is to be drawn.

    Args:
        bits: the NLL of each code; above `threshold` it is to be drawn.
        keeps_top: whether all top codes stay. Where one does not, neither do the bottom codes of its cell, nor those
            beside that cell.
    """
    draw = {level: of_level > threshold for level, of_level in bits.items()}
    if keeps_top:
        draw["top"] = torch.zeros_like(draw["top"])
    if "bottom" in draw:
        under = functional.interpolate(draw["top"][:, None].float(), size=draw["bottom"].shape[1:])
        draw["bottom"] |= functional.max_pool2d(under, 3, 1, 1)[:, 0] > 0
    return {level: torch.where(draw[level], TO_DRAW, codes) for level, codes in levels.items()}


def weighted_difference(images: torch.Tensor, completions: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of |image - completion| `[n, height, width]`.

    Args:
        images: `[n, channels, height, width]` in 0…1. completions: `[n, draws, channels, height, width]`.
        brain: bool `[n, height, width]`: where distances are measured.
    """
    differences = (images[:, None] - completions).abs().mean(2)
    inside = brain[:, None].float()
    distances = (differences * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
    weights = (-NEARNESS * distances).softmax(1)
    return (weights[:, :, None, None] * differences).sum(1)


def typical_bits(folders: Mapping[str, Path], grids: Mapping[str, tuple[int, int]]) -> float | None:
    """Return the bits per code, all levels together, that priors need for the images that they were validated on.

    Args:
        folders: the folder of each level's prior, whose log.csv has the figure. grids: each level's height and width.
    Returns: None where a log is missing or has no validation.
    """
    total = 0.0
    for level, (height, width) in grids.items():
        found = [float(row["validate_bits_per_code"]) for row in read_log(folders[level] / LOG)
                 if row.get("validate_bits_per_code")]
        if not found:
            return None
        total += min(found) * height * width
    return total / sum(map(math.prod, grids.values()))


def _completions(model: autoencoder.Vqvae, priors: Mapping[str, Prior], gaps: Mapping[str, torch.Tensor],
                 items: Sequence[int], numbers: Sequence[int], seed: int, known: Mapping[str, torch.Tensor],
                 on_codes: Callable[[int], object]) -> torch.Tensor:
    """Return float32 `[n, draws, channels, height, width]` in 0…1, on the CPU: each image completed once for each of
    `numbers`, those of its completions."""
    each, of_images = len(numbers), [item for item in items for _ in numbers]
    maps: dict[str, torch.Tensor] = {}
    for level, prior in priors.items():
        stay = gaps[level].repeat_interleave(each, 0)
        maps[level] = sampler.draw_codes(
            prior, of_images, seed, level, top_codes=maps.get("top"), stay=stay,
            known=known[level].repeat_interleave(each, 0), on_code=lambda: on_codes(len(of_images)),
            candidates=list(numbers) * len(items))
    return model.decode(maps, softly=True).cpu().unflatten(0, (len(items), each))
