"""Images -> images with synthetic lesions -> how well restoration and surprise find them, beside plain baselines.

Three kinds: a `bright` and a `dark` blob, whose intensity gives them away, and a `ventricle` that is moved and widened
by a smooth warp, which has no intensity that a healthy brain lacks: only its place is unusual. All are put inside the
brain. They are drawn by (seed, kind, number of the image), so that equal settings give equal lesions.

NOTE A lesion's mask is what of it can be seen: the pixels of the blob, or where a ventricle is now or was before, whose
intensity differs from the healthy image's by more than CHANGE. A bright pixel in bright tissue is nothing that anybody
could find. These are drawings, good for comparing scores; they say nothing about a disease.

One lesion of each kind is put into each image. The scores are judged pixel by pixel inside the brain by the area under
the ROC curve (AUROC): the probability that a pixel of a lesion scores higher than one outside of it; 0.5 is guessing.
AUROC flatters where lesions are small: what counts are the figures of metrics/detection.py beside it, of all lesions of
a kind, and AUPRC of the smallest, middle and largest third of them, and of those with the least, middle and most
contrast. Nothing is fitted to lesions. The image as it is before the lesion is shown to no score.

- restoration: |image - completions|, what restoration.py makes of it.
- restoration_times_likelihood: that, times the NLL, as `Restored.product`.

- likelihood: NLL of the codes, in bits per pixel. A prior reads in one direction, and what is announced from the left
  surprises it less: so the mirrored image is read as well and the mean of both taken. Light smoothing.
- intensity: a threshold. How bright, how dark, or how far from the mean of the image's brain, smoothed or not.
- reconstruction_error: |image - reconstruction|, smoothed or not.
- atlas: |intensity - mean| / (spread + 0.05), mean and spread over the training images of the same place in the brain,
  not smoothed, or smoothed as the restoration or as the likelihood. atlas_signed: the same, how bright or how dark,
  whichever is better, which is to know beforehand what kind of lesion there is.

A baseline gets the best of its forms for each kind of lesion, chosen on the very lesions that it is judged on; the
others have one form for all, chosen on the validate split of real slices. So the comparison is in the baselines'
favour. AUROC of all kinds together there (64², 10 subjects, 442 lesions): as it is 0.708; smoothed 0.742; smoothed and
read both ways, which was taken, 0.770. Smoothed, less the NLL that the prior expects at each code 0.729; standardised
by the mean and spread of training images at each place 0.712; the top level alone 0.690, the bottom alone 0.701.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from vqvae2.common import random_numbers, statistics
from vqvae2.common.progress import Bar
from vqvae2.evaluation import restoration, surprise
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import detection, similarity
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae
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
SMOOTHING = restoration.LIKELIHOOD_SMOOTHING
MOST_IMAGES = 300  # chosen evenly; the scores of more images would fill the memory
PICTURED = 3
SCORES = ("likelihood", "intensity", "reconstruction_error")
FURTHER = ("atlas", "atlas_signed", "restoration", "restoration_times_likelihood")
# The only form of the likelihood and of restorations, and the plain one of the reconstruction error and the atlas.
LIKELIHOOD, RESTORATION, ERROR = "bits_per_pixel_both_ways_smoothed", "weighted_difference_smoothed", "absolute"
# The atlas of an image: training images of the same plane so near to its own, in mm, and at least so many of them; what
# is added to the spread, lest noise in the black background become large.
NEAR_MM, FEWEST_NEAR, LEAST_SPREAD = 3.0, 20, 0.05
THIRDS = {"size": ("small", "middle", "large"), "contrast": ("low", "middle", "high")}


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
    """This judge computes how well restoration and the NLL of the codes find synthetic lesions, beside a threshold, the
    reconstruction error and an atlas."""

    name = "lesions"
    columns = ("lesions", "images", *(name.replace("_", " ") for name in SCORES))

    def compute(self, evaluation: Evaluation) -> dict | None:
        """Return the figures for each kind and all together, and write lesions.png; None without a lesion."""
        settings = evaluation.settings
        scored = {kind: found for kind in KINDS if (found := score(
            evaluation.vqvae, evaluation.priors, evaluation.images, evaluation.data.splits["train"], kind,
            settings.batch, settings.seed))}
        if not scored:
            return None
        pictures.save_picture(picture(scored, PICTURED), evaluation.out / "lesions.png")
        return {"seed": settings.seed, "score": LIKELIHOOD, **judge(scored, settings.seed)}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return two lines for each kind of lesion."""
        aurocs = {kind: f"AUROC by {_listed(self.columns[2:], values)}"
                  for kind, _, *values in self.table(figures, report)}
        auprcs = {kind: f"AUPRC by {_listed(*zip(*((name.replace('_', ' '), value) for name, value, *_ in rows)))}"
                  for kind in aurocs if (rows := detection_table(figures[kind]))}
        return [(f"lesions, {kind}", said[kind]) for kind in aurocs for said in (aurocs, auprcs) if kind in said]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each kind of lesion."""
        return [(kind, str(figures[kind]["images"]),
                 *(statistics.with_interval(figures[kind][name], "auroc", 3) for name in SCORES))
                for kind in (*KINDS, "all") if kind in figures]


def detection_table(of_kind: Mapping) -> list[tuple[str, ...]]:
    """Return for each score its name and, as text, the metrics of `detection.FIGURES` on one kind of lesion, AUPRC with
    its interval; none for a report of an earlier version."""
    return [(name, statistics.with_interval(found, "auprc", 3, of="auprc_"),
             *(statistics.as_text(found[figure], 3) for figure in detection.FIGURES[1:]))
            for name in (*SCORES, *FURTHER) if "auprc" in (found := of_kind.get(name) or {})]


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


def score(vqvae: TrainedVqvae, priors: Mapping[str, Prior], split: ImageSet, train: ImageSet, kind: str, batch: int,
          seed: int) -> ScoredImages | None:
    """Put a lesion of one kind into the images of a split and score them; None where no image has a place for a lesion.

    Args:
        priors: one for each level of the model.
        train: the images of the atlas; without any there is no such score.
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
    scores = scores_of(vqvae, priors, images, train, brain, batch, seed, f"{kind} lesions")
    return ScoredImages(to_bytes(split.batch(chosen)), images, np.stack([lesion.mask for lesion in found]), brain,
                        scores)


def judge(scored: Mapping[str, ScoredImages], seed: int) -> dict:
    """Return for each kind, and for "all", {"images", "subjects", "share", "by", and for each score its figures}.

    share: how much of the brain is lesion. Figures are {"auroc", "ci_low", "ci_high", "form", "forms"}: form is the
    one that has this AUROC, the best of a baseline's, and forms has the AUROC of each; and {"auprc_form",
    "auprc_forms"} likewise, with the figures and intervals of `detection.with_intervals` of the form whose AUPRC is the
    best. by: see `_by_thirds`.
    `all` takes the images of all kinds together, each kind as often as it has found a place.
    """
    report = {}
    for kind, sets in {**{kind: [found] for kind, found in scored.items()}, "all": list(scored.values())}.items():
        masks, brain = (np.concatenate([getattr(found, name) for found in sets]) for name in ("masks", "brain"))
        names, owners = np.unique([subject for found in sets for subject in found.images.subjects], return_inverse=True)
        numbers = np.arange(len(masks))[:, None, None]
        # The lesion and the subject of each pixel of the brain; an image has one lesion, whose number is the image's.
        lesions, whose = (np.broadcast_to(values, brain.shape)[brain] for values in (
            np.where(masks, numbers, -1), owners[:, None, None]))
        report[kind] = {"images": len(masks), "subjects": len(names), "share": float(masks.sum() / brain.sum())}
        best = {}
        for name in sets[0].scores:
            of_forms = {form: np.concatenate([found.scores[name][form] for found in sets])[brain]
                        for form in sets[0].scores[name]}
            aurocs = {form: statistics.auroc(
                *(statistics.by_group(values[part], whose[part], len(names)) for part in (lesions >= 0, lesions < 0)),
                seed, same_subjects=True) for form, values in of_forms.items()}
            auprcs = {form: detection.figures(values, lesions, whose)["auprc"] for form, values in of_forms.items()}
            first, second = max(aurocs, key=lambda form: aurocs[form]["auroc"]), max(auprcs, key=auprcs.__getitem__)
            report[kind][name] = aurocs[first] | {
                "form": first, "forms": {form: found["auroc"] for form, found in aurocs.items()},
                "auprc_form": second, "auprc_forms": auprcs,
                **detection.with_intervals(of_forms[second], lesions, whose, seed)}
            best[name] = of_forms[second]
        if kind != "all":
            report[kind]["by"] = _by_thirds(sets[0], best, lesions, np.broadcast_to(numbers, brain.shape)[brain])
    return report


def _by_thirds(found: ScoredImages, scores: Mapping[str, np.ndarray], lesions: np.ndarray,
               images: np.ndarray) -> dict[str, dict[str, dict]]:
    """Return {"size", "contrast"} -> a third of the images -> {"images", "from", "to", and the AUPRC of each score}.

    A lesion's size is its share of the brain's area, its contrast the mean |difference| from the healthy image, 0…1.
    AUPRC is higher where more of the pixels are lesion: compare scores with each other, and not thirds.

    Args:
        scores, lesions, images: of each pixel of the brain, as in `judge`; the number of its image.
    """
    change = (found.images.bytes().float() - found.healthy).abs().mean(1).numpy() / 255
    area = found.masks.sum((1, 2))
    values = {"size": area / found.brain.sum((1, 2)), "contrast": (change * found.masks).sum((1, 2)) / area}
    report: dict[str, dict[str, dict]] = {}
    for what, of_images in values.items():
        report[what] = {}
        for third, chosen in zip(THIRDS[what], np.array_split(np.argsort(of_images, kind="stable"), 3)):
            if len(chosen):
                part = np.isin(images, chosen)
                report[what][third] = {
                    "images": len(chosen), "from": float(of_images[chosen].min()), "to": float(of_images[chosen].max()),
                    **{name: detection.figures(score[part], lesions[part], images[part])["auprc"]
                       for name, score in scores.items()}}
    return report


def picture(scored: Mapping[str, ScoredImages], each: int) -> Image.Image:
    """Return labelled rows of `each` evenly chosen images of each kind, the kind under each.

    The rows are the healthy image, the image with its lesion, where the lesion is, the NLL, the restoration, the
    reconstruction error.
    """
    parts = []
    for found in scored.values():
        count = min(each, len(found.masks))
        # Not the first and the last, which often are odd.
        chosen = ((np.arange(count) + 0.5) * len(found.masks) / count).astype(int)
        maps = (found.masks, found.scores["likelihood"][LIKELIHOOD], found.scores["restoration"][RESTORATION],
                found.scores["reconstruction_error"][ERROR])
        parts.append((found.healthy[chosen], found.images.bytes()[chosen],
                      *(torch.from_numpy(values[chosen]) for values in maps)))
    healthy, images, masks, bits, restored, error = map(torch.cat, zip(*parts))
    return pictures.strip([("original", healthy), ("with lesion", images), ("lesion", masks[:, None].byte() * 255),
                           ("bits per pixel", pictures.ScaledMaps(bits, surprise.BITS_PER_PIXEL)),
                           ("restoration", pictures.ScaledMaps(restored, pictures.DIFFERENCE_SCALE)),
                           ("|difference|", pictures.ScaledMaps(error, pictures.DIFFERENCE_SCALE))],
                          captions=[kind for kind, part in zip(scored, parts) for _ in part[0]],
                          title="Synthetic lesions, and what three scores make of them")


def scores_of(vqvae: TrainedVqvae, priors: Mapping[str, Prior], images: ImageSet, train: ImageSet, brain: np.ndarray,
              batch: int, seed: int, what: str) -> dict[str, dict[str, np.ndarray]]:
    """Return every score in all its forms, float32 `[n, height, width]`, high where a lesion is thought to be.

    Args:
        brain: bool `[n, height, width]`. what: what the images are, for the bars. Others as for `score`.
    """
    model = vqvae.model
    with Bar(total=2 * (1 + len(priors)) * len(images), desc=what, unit="image") as bar:
        maps, made = encoding.reconstruct(model, images, batch, bar.update)
        bits = surprise.both_ways(model, priors, images, batch, maps, bar.update)
    with Bar(total=restoration.codes_to_settle(vqvae, images), desc=f"{what}, restored", unit="code") as bar:
        restored = restoration.restore(vqvae, priors, images, seed=seed, codes=maps, bits=bits, on_codes=bar.update)
    pixels = images.batch(np.arange(len(images)))
    grey = pixels.mean(1).numpy()
    error = (pixels - made.float() / 255).abs().mean(1).numpy()
    mean = np.array([image[inside].mean() for image, inside in zip(grey, brain)])[:, None, None]
    intensity = {"bright": grey, "dark": -grey, "far_from_mean": abs(grey - mean)}
    found = {"likelihood": {LIKELIHOOD: restored.bits}, "intensity": _smoothed_or_not(intensity, brain),
             "reconstruction_error": _smoothed_or_not({ERROR: error}, brain)}
    if len(train):
        away = distance_from_atlas(grey, images, train)
        shares = {"lightly_smoothed": restoration.SMOOTHING, "smoothed": SMOOTHING}
        found["atlas"] = _smoothed_or_not({ERROR: abs(away)}, brain, shares)
        found["atlas_signed"] = _smoothed_or_not({"bright": away, "dark": -away}, brain, shares)
    return found | {"restoration": {RESTORATION: restored.maps},
                    "restoration_times_likelihood": {RESTORATION: restored.product}}


def distance_from_atlas(grey: np.ndarray, images: ImageSet, train: ImageSet) -> np.ndarray:
    """Return (intensity - mean) / (spread + LEAST_SPREAD) of each pixel, float32 `[n, height, width]`: mean and spread
    are those of the training images of the image's plane within NEAR_MM, or the FEWEST_NEAR nearest.

    Args:
        grey: float32 `[n, height, width]` in 0…1, of `images`, whose manifest rows say where they are; where these do
            not, all training images count.
    """
    def places(files: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        return (np.array([facts.get("plane", "") for facts in files.facts]),
                np.array([float(facts.get("position_mm") or 0) for facts in files.facts]))

    (planes, positions), found = places(train), {}
    result = np.empty_like(grey)
    for item, (plane, position) in enumerate(zip(*places(images))):
        if (plane, position) not in found:
            away = np.where(planes == plane, abs(positions - position), np.inf)
            near = np.argsort(away, kind="stable")[:max(FEWEST_NEAR, int((away <= NEAR_MM).sum()))]
            values = train.batch(near).mean(1).numpy()
            found[plane, position] = values.mean(0), values.std(0) + LEAST_SPREAD
        mean, spread = found[plane, position]
        result[item] = (grey[item] - mean) / spread
    return result


def _listed(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values))


def _smoothed_or_not(forms: dict[str, np.ndarray], brain: np.ndarray,
                     shares: Mapping[str, float] = MappingProxyType({"smoothed": SMOOTHING})) -> dict[str, np.ndarray]:
    return forms | {f"{name}_{how}": surprise.smoothed(values, brain, share)
                    for how, share in shares.items() for name, values in forms.items()}


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
