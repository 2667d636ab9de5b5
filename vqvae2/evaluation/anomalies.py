"""Images with synthetic lesions -> how well the priors' surprise finds them, beside two plain baselines.

One lesion of each kind (`lesions.py`) is put into each image. The scores are judged pixel by pixel inside the brain
by the area under the ROC curve (AUROC): the probability that a pixel of a lesion scores higher than one outside of
it; 0.5 is guessing. Nothing is fitted to lesions. The image as it is before the lesion is shown to no score.

- likelihood: NLL of the codes, in bits per pixel. A prior reads in one direction, and what is announced from the left
  surprises it less: so the mirrored image is read as well and the mean of both taken. Light smoothing.
- intensity: a threshold. How bright, how dark, or how far from the mean of the image's brain, smoothed or not.
- reconstruction_error: |image - reconstruction|, smoothed or not.

A baseline gets the best of its forms for each kind of lesion, chosen on the very lesions that it is judged on; the
likelihood has one form for all, chosen on the validate split of real slices. So the comparison is in the baselines'
favour. AUROC of all kinds together there (64², 10 subjects, 442 lesions): as it is 0.708; smoothed 0.742; smoothed and
read both ways, which was taken, 0.770. Smoothed, less the NLL that the prior expects at each code 0.729; standardised
by the mean and spread of training images at each place 0.712; the top level alone 0.690, the bottom alone 0.701.

Reference: Hanley and McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from vqvae2.evaluation import lesions, likelihood, map_pictures
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import similarity
from vqvae2.models import code_maps, encoding
from vqvae2.models.autoencoder import Vqvae
from vqvae2.priors.pixel_cnn import Prior

SMOOTHING = 1 / 32
"""Standard deviation of the smoothing, as a share of the image's width: 7 mm at a field of view of 224 mm."""
MOST_IMAGES = 300
"""More are not needed, and their scores would fill the memory: so many are chosen evenly."""
RESAMPLES = 1000
SCORES = ("likelihood", "intensity", "reconstruction_error")
LIKELIHOOD, ERROR = "bits_per_pixel_both_ways_smoothed", "absolute"
"""The only form of the likelihood, and the plain one of the reconstruction error."""


@dataclass(frozen=True)
class Scored:
    """Images with a lesion each, and what every score makes of them."""

    healthy: torch.Tensor
    """uint8 `[n, channels, height, width]`: the images before."""
    images: ImageSet
    """8 bit, with the lesion."""
    masks: np.ndarray
    """bool `[n, height, width]`: the lesion, all of it inside the brain."""
    brain: np.ndarray
    """bool `[n, height, width]`."""
    scores: dict[str, dict[str, np.ndarray]]
    """Score -> its forms -> float32 `[n, height, width]`, high where a lesion is thought to be."""


def score(model: Vqvae, priors: Mapping[str, Prior], split: ImageSet, kind: str, batch: int,
          seed: int) -> Scored | None:
    """Put a lesion of one kind into the images of a split and score them; None where no image has a place for one.

    Args:
        priors: one for each level of the model.
        batch: images at a time. seed: of the lesions.
    """
    items = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_IMAGES)).round().astype(int))
    brains = similarity.brain_mask(torch.from_numpy(split.pixels[items] > 0)).numpy()
    made = [lesions.add(kind, split.batch([item])[0].numpy(), brain, seed, int(item))
            for item, brain in zip(items, brains)]
    has_one = np.array([one is not None for one in made])
    if not has_one.any():
        return None
    found, chosen, brain = [one for one in made if one is not None], items[has_one], brains[has_one]
    masks = np.stack([one.mask for one in found])
    pixels = np.stack([to_bytes(torch.from_numpy(one.image)).numpy() for one in found])
    images = ImageSet(tuple(split.files[item] for item in chosen), pixels)
    with tqdm(total=2 * (1 + len(priors)) * len(images), desc=f"{kind} lesions", unit="image", leave=False) as bar:
        scores = _scores(model, priors, images, brain, batch, bar)
    return Scored(to_bytes(split.batch(chosen)), images, masks, brain, scores)


def judge(scored: Mapping[str, Scored], seed: int) -> dict:
    """Return for each kind, and for "all", {"images", "subjects", "share", and for each of SCORES its figures}.

    share: how much of the brain is lesion. Figures are {"auroc", "ci_low", "ci_high", "form", "forms"}: form is the
    one that has this AUROC, the best of a baseline's, and forms has the AUROC of each.
    `all` takes the images of all kinds together, each kind as often as it has found a place.
    """
    report = {}
    for kind, sets in {**{kind: [one] for kind, one in scored.items()}, "all": list(scored.values())}.items():
        masks, brain = (np.concatenate([getattr(one, name) for one in sets]) for name in ("masks", "brain"))
        subjects = [subject for one in sets for subject in one.images.subjects]
        figures = {}
        for name, forms in sets[0].scores.items():
            of_forms = {form: auroc(np.concatenate([one.scores[name][form] for one in sets]), masks, brain, subjects,
                                    seed) for form in forms}
            best = max(of_forms, key=lambda form: of_forms[form]["auroc"])
            figures[name] = of_forms[best] | {"form": best, "forms": {form: one["auroc"] for form, one in
                                                                      of_forms.items()}}
        report[kind] = {"images": len(masks), "subjects": len(set(subjects)),
                        "share": float(masks.sum() / brain.sum()), **figures}
    return report


def surprise(model: Vqvae, priors: Mapping[str, Prior], images: ImageSet, batch: int,
             maps: code_maps.CodeMaps | None = None, on_batch: Callable[[int], object] = lambda _: None) -> np.ndarray:
    """Return float32 `[n, height, width]`, the NLL in bits per pixel: mean of the image's and of its mirror image's.

    Args:
        priors: one for each level of the model.
        maps: codes of the images, if they are there already.
        on_batch: told how many images have been encoded, or been read by a prior, since.
    """
    def one_way(maps: code_maps.CodeMaps) -> np.ndarray:
        bits = likelihood.code_bits(priors, maps.levels, images.facts, batch, on_batch)
        return likelihood.bits_per_pixel_maps(bits, tuple(images.pixels.shape[2:])).numpy()

    mirrored = dataclasses.replace(images, pixels=np.ascontiguousarray(images.pixels[..., ::-1]))
    as_it_is = maps or encoding.extract(model, images, batch, on_batch)
    return (one_way(as_it_is) + one_way(encoding.extract(model, mirrored, batch, on_batch))[..., ::-1]) / 2


def auroc(scores: np.ndarray, masks: np.ndarray, brain: np.ndarray, subjects: Sequence[str], seed: int) -> dict:
    """Return {"auroc", "ci_low", "ci_high"} over all pixels of the brain: 1 finds every lesion, 0.5 is guessing.

    Args:
        scores: `[n, height, width]`. masks, brain: bool, likewise; at least one pixel of the brain in the masks and one
            outside of them.
        subjects: whose image each is; the 95 % interval is over subjects drawn with replacement.
        seed: of the draws.

    AUROC is the Mann-Whitney statistic over its largest value, ties counting one half (see Reference). It is a sum over
    pairs of a lesion's pixel and another; with the pairs counted once by their two subjects, each draw of subjects is a
    weighted sum of these counts, exact and without another look at the pixels.
    """
    names, subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    own = [subject == number for number in range(len(names))]
    inside, outside = ([scores[one][brain[one] & (masks[one] == wanted)] for one in own] for wanted in (True, False))
    wins = np.array([_wins(inside, np.sort(others)) for others in outside])
    pixels = [np.array([len(one) for one in part], dtype=float) for part in (inside, outside)]

    def of(times_drawn: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a draw of subjects without a lesion has no AUROC
            return (np.einsum("rs,st,rt->r", times_drawn, wins, times_drawn)
                    / ((times_drawn @ pixels[0]) * (times_drawn @ pixels[1])))

    number = len(names)
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    low, high = np.nanquantile(of(draws), (0.025, 0.975))
    return {"auroc": float(of(np.ones((1, number)))[0]), "ci_low": float(low), "ci_high": float(high)}


def picture(scored: Mapping[str, Scored], each: int) -> Image.Image:
    """Return `maps_plots.lesion_rows` of `each` evenly chosen images of each kind, and the kind under each."""
    parts = []
    for kind, one in scored.items():
        count = min(each, len(one.masks))
        chosen = ((np.arange(count) + 0.5) * len(one.masks) / count).astype(int)  # not the first and last: often odd
        maps = (one.masks, one.scores["likelihood"][LIKELIHOOD], one.scores["reconstruction_error"][ERROR])
        parts.append((one.healthy[chosen], one.images.bytes()[chosen],
                      *(torch.from_numpy(values[chosen]) for values in maps), [kind] * len(chosen)))
    *pictures, kinds = zip(*parts)
    return map_pictures.lesion_rows(*(torch.cat(one) for one in pictures), [kind for one in kinds for kind in one],
                                  title="Synthetic lesions, and what two scores make of them")


def smoothed(maps: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return maps `[n, height, width]` after a Gaussian mean over the pixels of the brain alone (see SMOOTHING)."""
    sigma = SMOOTHING * maps.shape[2]

    def one(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
        weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
        return np.where(inside, ndimage.gaussian_filter(values * inside, sigma) / weight.clip(1e-6), 0)

    return np.stack([one(*pair) for pair in zip(maps, brain)]).astype(np.float32)


def _scores(model: Vqvae, priors: Mapping[str, Prior], images: ImageSet, brain: np.ndarray, batch: int,
            bar: tqdm) -> dict[str, dict[str, np.ndarray]]:
    """Every score in all its forms, float32 `[n, height, width]`."""
    maps, made = encoding.reconstruct(model, images, batch, bar.update)
    bits = surprise(model, priors, images, batch, maps, bar.update)
    pixels = images.batch(np.arange(len(images)))
    grey = pixels.mean(1).numpy()
    error = (pixels - made.float() / 255).abs().mean(1).numpy()
    mean = np.array([one[inside].mean() for one, inside in zip(grey, brain)])[:, None, None]
    intensity = {"bright": grey, "dark": -grey, "far_from_mean": abs(grey - mean)}
    return dict(zip(SCORES, ({LIKELIHOOD: smoothed(bits, brain)}, _smoothed_or_not(intensity, brain),
                             _smoothed_or_not({ERROR: error}, brain))))


def _smoothed_or_not(forms: dict[str, np.ndarray], brain: np.ndarray) -> dict[str, np.ndarray]:
    return forms | {f"{name}_smoothed": smoothed(values, brain) for name, values in forms.items()}


def _wins(inside: Sequence[np.ndarray], others: np.ndarray) -> list[float]:
    """For each subject's pixels of a lesion, how many of the sorted `others` they exceed; a tie is one half."""
    return [float((np.searchsorted(others, one, "left") + np.searchsorted(others, one, "right")).sum()) / 2
            for one in inside]
