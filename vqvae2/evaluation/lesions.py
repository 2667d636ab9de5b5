"""Images -> images with synthetic lesions -> how well the priors' surprise finds them, beside two plain baselines.

Three kinds: a `bright` and a `dark` blob, whose intensity gives them away, and a `ventricle` that is moved and widened
by a smooth warp, which has no intensity that a healthy brain lacks: only its place is unusual. All are put inside the
brain. They are drawn by (seed, kind, number of the image), so that equal settings give equal lesions.

NOTE A lesion's mask is what of it can be seen: the pixels of the blob, or where a ventricle is now or was before, whose
intensity differs from the healthy image's by more than CHANGE. A bright pixel in bright tissue is nothing that anybody
could find. These are drawings, good for comparing scores; they say nothing about a disease.

One lesion of each kind is put into each image. The scores are judged pixel by pixel inside the brain by the area under
the ROC curve (AUROC): the probability that a pixel of a lesion scores higher than one outside of it; 0.5 is guessing.
Nothing is fitted to lesions. The image as it is before the lesion is shown to no score.

- likelihood: NLL of the codes, in bits per pixel. A prior reads in one direction, and what is announced from the left
  surprises it less: so the mirrored image is read as well and the mean of both taken. Light smoothing.
- intensity: a threshold. How bright, how dark, or how far from the mean of the image's brain, smoothed or not.
- reconstruction_error: |image - reconstruction|, smoothed or not.

A baseline gets the best of its forms for each kind of lesion, chosen on the very lesions that it is judged on; the
likelihood has one form for all, chosen on the validate split of real slices. So the comparison is in the baselines'
favour. AUROC of all kinds together there (64², 10 subjects, 442 lesions): as it is 0.708; smoothed 0.742; smoothed and
read both ways, which was taken, 0.770. Smoothed, less the NLL that the prior expects at each code 0.729; standardised
by the mean and spread of training images at each place 0.712; the top level alone 0.690, the bottom alone 0.701.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from vqvae2.common import random_numbers, statistics
from vqvae2.common.progress import Bar
from vqvae2.evaluation import surprise
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import similarity
from vqvae2.models import autoencoder, code_maps, encoding
from vqvae2.plots import pictures
from vqvae2.priors.base import Prior

KINDS = ("bright", "dark", "ventricle")
CHANGE = 0.1  # difference on the range 0…1 above which a pixel belongs to the lesion
SMALLEST_PIXELS = 6  # a lesion with fewer pixels is none
RADII = (0.04, 0.08)  # half axes of a blob, as shares of the root of the brain's area: 6 to 11 mm in an adult's
STRENGTHS = (0.5, 0.9)  # share of the way to white or black by which the centre of a blob is changed
TISSUE = {"bright": (0.0, 0.7), "dark": (0.5, 1.0)}  # local mean intensities in which a blob shows
# Least depth of a ventricle, as a share of the brain's largest depth; its least share of the brain's area; the longest
# way from the brain's middle to its own, as a share of the root of the brain's area.
DEEP, SMALLEST_VENTRICLE, MOST_OFF_CENTRE = 0.3, 0.008, 0.2
SMOOTHING = 1 / 32  # standard deviation, as a share of the image's width: 7 mm at a field of view of 224 mm
MOST_IMAGES = 300  # chosen evenly; the scores of more images would fill the memory
PICTURED = 3
SCORES = ("likelihood", "intensity", "reconstruction_error")
# The only form of the likelihood, and the plain one of the reconstruction error.
LIKELIHOOD, ERROR = "bits_per_pixel_both_ways_smoothed", "absolute"


class Lesion(NamedTuple):
    """This is an image with a lesion, float32 `[channels, height, width]` in 0…1, and the mask of the lesion, bool
    `[height, width]` (see the module's NOTE)."""

    image: np.ndarray
    mask: np.ndarray


class ScoredImages(NamedTuple):
    """These are images with a lesion each, and their scores.

    Attributes:
        healthy: uint8 `[n, channels, height, width]`: the images before.
        images: the images with the lesion, 8 bit.
        masks: bool `[n, height, width]`: the lesion, all of it inside the brain.
        brain: bool `[n, height, width]`.
        scores: score -> its forms -> float32 `[n, height, width]`, high where a lesion is thought to be.
    """

    healthy: torch.Tensor
    images: ImageSet
    masks: np.ndarray
    brain: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


class LesionsJudge(Judge):
    """This judge computes how well the NLL of the codes finds synthetic lesions (AUROC), beside a threshold and the
    reconstruction error."""

    name = "lesions"
    columns = ("lesions", "images", *(name.replace("_", " ") for name in SCORES))

    def compute(self, evaluation: Evaluation) -> dict | None:
        """Return the figures for each kind and all together, and write lesions.png; None without a lesion."""
        settings = evaluation.settings
        scored = {kind: found for kind in KINDS if (found := score(
            evaluation.vqvae.model, evaluation.priors, evaluation.images, kind, settings.batch, settings.seed))}
        if not scored:
            return None
        pictures.save_picture(picture(scored, PICTURED), evaluation.out / "lesions.png")
        return {"seed": settings.seed, "score": LIKELIHOOD, **judge(scored, settings.seed)}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each kind of lesion."""
        return [(f"lesions, {kind}", "AUROC by " + ", ".join(
            f"{score} {value}" for score, value in zip(self.columns[2:], values)))
            for kind, _, *values in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each kind of lesion."""
        return [(kind, str(figures[kind]["images"]),
                 *(statistics.with_interval(figures[kind][name], "auroc", 3) for name in SCORES))
                for kind in (*KINDS, "all") if kind in figures]


def add(kind: str, image: np.ndarray, brain: np.ndarray, seed: int, number: int) -> Lesion | None:
    """Return the image with one lesion, or None where it has no place for this kind, such as no ventricle to move.

    Args:
        kind: one of KINDS.
        image: float32 `[channels, height, width]` in 0…1.
        brain: bool `[height, width]`; no pixel outside of it is changed.
        seed, number: the seed and the image's number, from which the lesion is drawn.
    Raises: KeyError for another kind.
    """
    draws = random_numbers.uniform(seed, f"{kind} lesion", number, np.arange(5)).numpy()
    changed = _moved_ventricle(image, brain, draws) if kind == "ventricle" else _blob(kind, image, brain, draws)
    if changed is None:
        return None
    picture = np.where(brain, changed[0], image).astype(np.float32)
    mask = brain & changed[1] & (np.abs(picture - image).mean(0) > CHANGE)
    return Lesion(picture, mask) if mask.sum() >= SMALLEST_PIXELS else None


def find_ventricle(image: np.ndarray, brain: np.ndarray) -> np.ndarray | None:
    """Return bool `[height, width]`, the largest dark space deep in the brain's middle, or None where there is none.

    That is a ventricle, or below the ventricles a cistern. `image` is `[channels, height, width]` in 0…1.
    """
    if not brain.any():
        return None
    extent, middle = math.sqrt(brain.sum()), np.argwhere(brain).mean(0)
    pieces, _ = ndimage.label(deep_fluid(image, brain))
    sizes = np.bincount(pieces.flat)[1:]
    if len(sizes) == 0 or sizes.max() < SMALLEST_VENTRICLE * brain.sum():
        return None
    largest = pieces == sizes.argmax() + 1
    return largest if math.dist(np.argwhere(largest).mean(0), middle) <= MOST_OFF_CENTRE * extent else None


def deep_fluid(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return bool `[height, width]`, what is dark and deep in the brain.

    Dark is below half of the brain's median, as CSF is in T1, after a light smoothing that takes thin sulci away;
    `image` is `[channels, height, width]` in 0…1, `brain` bool `[height, width]`.
    """
    if not brain.any():
        return brain
    depth, grey = _depth(brain), ndimage.gaussian_filter(image.mean(0), 0.012 * math.sqrt(brain.sum()))
    return brain & (depth > DEEP * depth.max()) & (grey < np.median(grey[brain]) / 2)


def warp(ventricle: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return float `[2, height, width]`, the row and column from which each pixel is taken: a diffeomorphism.

    Args:
        ventricle, brain: bool `[height, width]`.
        draws: at least 3 numbers in 0…1: how far it is moved, where to, how much it is widened.

    With r the distance from the ventricle's middle: place - bump(r) (shift + widening (place - middle)), where bump(r)
    = (1 - r²/radius²)² falls to 0 smoothly, inside the brain.
    """
    middle = np.argwhere(ventricle).mean(0)
    rows, columns = np.indices(brain.shape)
    down, across = rows - middle[0], columns - middle[1]
    distance = np.hypot(down, across)
    radius = min(1.5 * distance[ventricle].max() + 0.1 * math.sqrt(brain.sum()),
                 _depth(brain)[tuple(middle.round().astype(int))])
    bump = (1 - (distance / radius) ** 2).clip(0) ** 2
    # The bump's slope is at most 1.54 / radius: with these bounds no place is folded over another.
    length, turn, widening = radius * (0.15 + 0.15 * draws[0]), 2 * math.pi * draws[1], 0.3 + 0.2 * draws[2]
    return np.stack([rows - bump * (length * math.sin(turn) + widening * down),
                     columns - bump * (length * math.cos(turn) + widening * across)])


def score(model: autoencoder.Vqvae, priors: Mapping[str, Prior], split: ImageSet, kind: str, batch: int,
          seed: int) -> ScoredImages | None:
    """Put a lesion of one kind into the images of a split and score them; None where no image has a place for a lesion.

    Args:
        priors: one for each level of the model.
        batch: images at a time.
        seed: seed from which the lesions are drawn.
    """
    items = statistics.evenly(len(split), MOST_IMAGES)
    brains = similarity.brain_mask(torch.from_numpy(split.pixels[items] > 0)).numpy()
    made = [add(kind, split.batch([item])[0].numpy(), brain, seed, int(item)) for item, brain in zip(items, brains)]
    found = [lesion for lesion in made if lesion]
    if not found:
        return None
    has_lesion = np.array([lesion is not None for lesion in made])
    chosen, brain = items[has_lesion], brains[has_lesion]
    pixels = np.stack([to_bytes(torch.from_numpy(lesion.image)).numpy() for lesion in found])
    images = ImageSet(tuple(split.files[item] for item in chosen), pixels)
    with Bar(total=2 * (1 + len(priors)) * len(images), desc=f"{kind} lesions", unit="image") as bar:
        scores = _scores(model, priors, images, brain, batch, bar)
    return ScoredImages(to_bytes(split.batch(chosen)), images, np.stack([lesion.mask for lesion in found]), brain,
                        scores)


def judge(scored: Mapping[str, ScoredImages], seed: int) -> dict:
    """Return for each kind, and for "all", {"images", "subjects", "share", and for each of SCORES its figures}.

    share: how much of the brain is lesion. Figures are {"auroc", "ci_low", "ci_high", "form", "forms"}: form is the
    one that has this AUROC, the best of a baseline's, and forms has the AUROC of each.
    `all` takes the images of all kinds together, each kind as often as it has found a place.
    """
    report = {}
    for kind, sets in {**{kind: [found] for kind, found in scored.items()}, "all": list(scored.values())}.items():
        masks, brain = (np.concatenate([getattr(found, name) for found in sets]) for name in ("masks", "brain"))
        names, owners = np.unique([subject for found in sets for subject in found.images.subjects], return_inverse=True)
        # The pixels of lesions and the others, and the subject of each of these pixels.
        parts = [(part, np.broadcast_to(owners[:, None, None], part.shape)[part])
                 for part in (brain & masks, brain & ~masks)]
        report[kind] = {"images": len(masks), "subjects": len(names), "share": float(masks.sum() / brain.sum())}
        for name in sets[0].scores:
            of_forms = {}
            for form in sets[0].scores[name]:
                scores = np.concatenate([found.scores[name][form] for found in sets])
                of_forms[form] = statistics.auroc(
                    *(statistics.by_group(scores[part], whose, len(names)) for part, whose in parts), seed,
                    same_subjects=True)
            best = max(of_forms, key=lambda form: of_forms[form]["auroc"])
            report[kind][name] = of_forms[best] | {
                "form": best, "forms": {form: figures["auroc"] for form, figures in of_forms.items()}}
    return report


def both_ways(model: autoencoder.Vqvae, priors: Mapping[str, Prior], images: ImageSet, batch: int,
             maps: code_maps.CodeMaps | None = None, on_batch: Callable[[int], object] = lambda _: None) -> np.ndarray:
    """Return float32 `[n, height, width]`, the NLL in bits per pixel: mean of the image's and of its mirror image's.

    Args:
        priors: one for each level of the model.
        maps: codes of the images, if they are there already.
        on_batch: told how many images have been encoded, or been read by a prior, since.
    """
    def one_way(maps: code_maps.CodeMaps) -> np.ndarray:
        bits = surprise.code_bits(priors, maps.levels, images.facts, batch, on_batch)
        return surprise.bits_per_pixel_maps(bits, tuple(images.pixels.shape[2:])).numpy()

    mirrored = dataclasses.replace(images, pixels=np.ascontiguousarray(images.pixels[..., ::-1]))
    as_it_is = maps or encoding.extract(model, images, batch, on_batch)
    return (one_way(as_it_is) + one_way(encoding.extract(model, mirrored, batch, on_batch))[..., ::-1]) / 2


def picture(scored: Mapping[str, ScoredImages], each: int) -> Image.Image:
    """Return labelled rows of `each` evenly chosen images of each kind, the kind under each.

    The rows are the healthy image, the image with its lesion, where the lesion is, the NLL, the reconstruction error.
    """
    parts = []
    for found in scored.values():
        count = min(each, len(found.masks))
        # Not the first and the last, which often are odd.
        chosen = ((np.arange(count) + 0.5) * len(found.masks) / count).astype(int)
        maps = (found.masks, found.scores["likelihood"][LIKELIHOOD], found.scores["reconstruction_error"][ERROR])
        parts.append((found.healthy[chosen], found.images.bytes()[chosen],
                      *(torch.from_numpy(values[chosen]) for values in maps)))
    healthy, images, masks, bits, error = map(torch.cat, zip(*parts))
    return pictures.strip([("original", healthy), ("with lesion", images), ("lesion", masks[:, None].byte() * 255),
                           ("bits per pixel", pictures.ScaledMaps(bits, surprise.BITS_PER_PIXEL)),
                           ("|difference|", pictures.ScaledMaps(error, pictures.DIFFERENCE_SCALE))],
                          captions=[kind for kind, part in zip(scored, parts) for _ in part[0]],
                          title="Synthetic lesions, and what two scores make of them")


def smoothed(maps: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return maps `[n, height, width]` after a Gaussian mean over the pixels of the brain alone (see SMOOTHING)."""
    sigma = (0, SMOOTHING * maps.shape[2], SMOOTHING * maps.shape[2])  # images are not mixed
    weight = ndimage.gaussian_filter(brain.astype(np.float32), sigma).clip(1e-6)
    return np.where(brain, ndimage.gaussian_filter(maps * brain, sigma) / weight, 0).astype(np.float32)


def _scores(model: autoencoder.Vqvae, priors: Mapping[str, Prior], images: ImageSet, brain: np.ndarray, batch: int,
            bar: Bar) -> dict[str, dict[str, np.ndarray]]:
    """Return every score in all its forms, float32 `[n, height, width]`."""
    maps, made = encoding.reconstruct(model, images, batch, bar.update)
    likelihood = smoothed(both_ways(model, priors, images, batch, maps, bar.update), brain)
    pixels = images.batch(np.arange(len(images)))
    grey = pixels.mean(1).numpy()
    error = (pixels - made.float() / 255).abs().mean(1).numpy()
    mean = np.array([image[inside].mean() for image, inside in zip(grey, brain)])[:, None, None]
    intensity = {"bright": grey, "dark": -grey, "far_from_mean": abs(grey - mean)}
    return {"likelihood": {LIKELIHOOD: likelihood}, "intensity": _smoothed_or_not(intensity, brain),
            "reconstruction_error": _smoothed_or_not({ERROR: error}, brain)}


def _smoothed_or_not(forms: dict[str, np.ndarray], brain: np.ndarray) -> dict[str, np.ndarray]:
    return forms | {f"{name}_smoothed": smoothed(values, brain) for name, values in forms.items()}


def _blob(kind: str, image: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the image with an ellipse of soft edge, drawn towards white or black in tissue where that shows, and where
    the ellipse is."""
    radii = math.sqrt(brain.sum()) * (RADII[0] + (RADII[1] - RADII[0]) * draws[:2])
    local = ndimage.gaussian_filter(image.mean(0), radii.mean() / 2)
    least, most = TISSUE[kind]
    places = np.argwhere((_depth(brain) > radii.max()) & (local >= least) & (local <= most))
    if len(places) == 0:
        return None
    down, across = np.indices(brain.shape) - places[int(draws[2] * len(places))][:, None, None]
    cosine, sine = math.cos(math.pi * draws[3]), math.sin(math.pi * draws[3])
    distance = np.hypot((cosine * down + sine * across) / radii[0], (cosine * across - sine * down) / radii[1])
    weight = (STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * draws[4]) * ((1.25 - distance) / 0.5).clip(0, 1)
    return image + weight * ((kind == "bright") - image), weight > 0


def _moved_ventricle(image: np.ndarray, brain: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the image with its ventricle moved and widened, and where the ventricle is now or was before."""
    ventricle = find_ventricle(image, brain)
    if ventricle is None:
        return None
    places = warp(ventricle, brain, draws)
    now = ndimage.map_coordinates(ventricle.astype(np.float32), places, order=1) > 0.5
    return (np.stack([ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in image]),
            ventricle | now)


def _depth(brain: np.ndarray) -> np.ndarray:
    """Return the number of pixels from each pixel of the brain to the edge of the brain or of the picture."""
    return ndimage.distance_transform_edt(np.pad(brain, 1))[1:-1, 1:-1]
