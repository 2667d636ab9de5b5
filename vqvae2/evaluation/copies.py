"""Samples, unseen and training slices -> whether samples are copies: how far each is from its nearest training slice.

A number alone says nothing: slices of one plane are all alike. So the same is measured of slices of people whom the
model never saw. `closer_share` is the share of samples that are nearer to training than the 1st percentile of those:
about 0.01 where samples are as far from the training slices as unseen people are, much more where some are copies. Its
95 % interval starts above 0.01 only if that is neither chance nor the choice of the few unseen subjects.

How to read it: first the share, then the five closest pairs (`picture`), which a person has to look at. Samples are
softer than slices, and what is soft is nearer to everything in pixels: a share above 0.01 whose pairs differ in their
folds is softness, not memory. `judge` of the reconstructions of the unseen slices gives the share that softness
alone makes. A low share does not prove the absence of copies of parts, or of copies that were bent or turned.

- pixels: root mean square difference, images 0…1, on a black plane without end, so that what a shift moves beyond the
  border still counts; the least over all training slices, mirrored or not, and all shifts by whole pixels up to REACH
  of the width both ways. The distance is symmetric. It is exact: see `Gallery`.
- features: Euclidean distance of whatever feature vectors the caller has, without registration.

References
1. Meehan, Chaudhuri, Dasgupta 2020, A non-parametric test to detect data-copying in generative models (why a distance
   needs unseen data beside it).
2. Lewis 1995, Fast normalized cross-correlation (all shifts at once by the Fourier transform).
3. Brown, Cai, DasGupta 2001, Interval estimation for a binomial proportion (Jeffreys interval).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import fft
from scipy.spatial import distance
from tqdm import tqdm

from vqvae2.common.statistics import bootstrap, evenly
from vqvae2.evaluation import distances
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet
from vqvae2.plots import pictures

REACH = 1 / 16
"""Largest shift in each direction, as a share of the image's width (at least 1 pixel)."""
PERCENTILE = 1
PICTURED = 5
MOST_UNSEEN = 1000
"""If there are more unseen slices, this many are chosen evenly."""
CYCLES = 12, 24
"""The first and the second bound know the frequencies up to so many cycles over the padded picture. On slices of 128²
the first leaves some 200 of 4,080 pairs, the second some 30."""
FIRST, CHUNK = 16, 32
"""Pairs whose exact distance is computed at a time: the most promising, then the others."""
SLACK = 1e-5
"""Largest error of a squared distance in float32, as a share of both images' energy; 3e-7 was measured at most."""


@dataclass(frozen=True)
class Match:
    """The training slice nearest to an image, and what lays it upon the image."""

    distance: float
    """Root mean square difference, images 0…1."""
    item: int
    mirrored: bool
    """The slice is mirrored first, left to right,"""
    shift: tuple[int, int]
    """and then moved by so many pixels down and to the right."""


@dataclass(frozen=True)
class Pair:
    """A sample beside its nearest training slice, for the picture."""

    sample: torch.Tensor
    """uint8 `[channels, height, width]`."""
    training: torch.Tensor
    """Likewise, mirrored and moved onto the sample."""
    distance: float
    threshold: float


class Band:
    """The low frequencies of training slices, and the lower bound that they give."""

    def __init__(self, low: torch.Tensor, energy: torch.Tensor, padded: Sequence[int], reach: int, cycles: int):
        """Take coefficients `[n, channels, rows, columns]` of more cycles, of which this band has fewer.

        `energy` is the slices' sums of squares, `padded` the sides of the pictures that were transformed.
        """
        self.cycles = cycles
        middle = low.shape[2] // 2
        self.low = low[:, :, middle - cycles:middle + cycles + 1, :cycles + 1].contiguous()
        self.weights = torch.full((cycles + 1,), 2 / (padded[0] * padded[1]))
        self.weights[0] /= 2  # the others stand for their mirror images too, which rfft2 leaves out
        self.energy, self.within = energy, self.energy_of(self.low)
        self.beyond = (energy - self.within).clamp(min=0).sqrt()
        shifts = torch.arange(-reach, reach + 1, dtype=torch.float64)
        down, right = (torch.exp(2j * torch.pi / side * shifts[:, None] * torch.arange(first, cycles + 1))
                       for side, first in zip(padded, (-cycles, 0)))
        self.right = (right * self.weights).to(torch.complex64).T.contiguous()
        # Of the second product only the real part is wanted: it is a product of real matrices.
        self.down = torch.view_as_real(down.conj().to(torch.complex64)).flatten(1).T.contiguous()

    def energy_of(self, low: torch.Tensor) -> torch.Tensor:
        """Sum of squares of what these coefficients `[…, channels, rows, columns]` make, float64."""
        return (torch.view_as_real(low).square().sum(-1) * self.weights).sum((-3, -2, -1)).double()

    def bounds(self, low: torch.Tensor, total: float, items: torch.Tensor) -> torch.Tensor:
        """Return lower bounds of the squared distance from an image to some slices, float64 `[items]`.

        `low` is the image's coefficients `[channels, rows, columns]`, `total` its sum of squares.
        """
        parts = [((low * self.low[chunk].conj()).sum(1) @ self.right) for chunk in items.split(256)]
        most = [(torch.view_as_real(turned.transpose(1, 2).contiguous()).flatten(2) @ self.down).flatten(1).amax(1)
                for turned in parts]
        within = self.energy_of(low)
        high = (total - within).clamp(min=0).sqrt() - self.beyond[items]
        return (within + self.within[items] - 2 * torch.cat(most).double() + high.square()
                - SLACK * (total + self.energy[items]))


class Gallery:
    """Training slices in which the nearest one to an image is found, exactly, without looking at all of them.

    The squared distance of two images is the sum over their Fourier coefficients (Parseval). A shift turns phases: the
    low frequencies' part is found for every shift by a small product of matrices. The high frequencies' part is at
    least (|a| - |b|)² of their norms, whatever the shift (triangle inequality). The sum of both is a lower bound. Pairs
    are gone through from the lowest bound upwards, all shifts of a pair at once by cross-correlation [2], until the
    next bound is above the best distance: no other pair can be nearer. The bound is taken twice, see CYCLES.

    Float32 decides only what is further than SLACK; the nearest of what is left is found in whole numbers.
    """

    def __init__(self, pixels: np.ndarray):
        """Take training slices, uint8 `[n, channels, height, width]`, n at least 1. They are not copied."""
        self.pixels = pixels
        height, width = pixels.shape[2:]
        self.reach = max(1, round(REACH * width))
        # Zeros enough that a shifted picture does not come in again on the other side.
        self.padded = [fft.next_fast_len(side + self.reach, real=True) for side in (height, width)]
        cycles = [min(cycles, (min(self.padded) - 1) // 2) for cycles in CYCLES]
        self.energy = torch.from_numpy(_energy(pixels))
        low = torch.cat([_low(self._spectra(pixels[i:i + 64]), cycles[-1]) for i in range(0, len(pixels), 64)])
        self.coarse, self.fine = (Band(low, self.energy, self.padded, self.reach, one) for one in cycles)

    def nearest(self, image: np.ndarray) -> Match:
        """Return the nearest training slice of an image, uint8 `[channels, height, width]`; the first of equals."""
        forms = np.stack([image, image[..., ::-1]])  # to mirror the image is as good as to mirror all slices
        spectra = self._spectra(forms)
        total = float(_energy(forms[:1])[0])
        pairs = torch.cartesian_prod(torch.arange(2), torch.arange(len(self.pixels)))
        pairs, bounds = self._ranked(self.coarse, spectra, total, pairs)
        seen = self._distances(spectra, total, pairs[:FIRST])
        pairs = pairs[FIRST:][bounds[FIRST:] <= seen[:, 0].min()]
        pairs, bounds = self._ranked(self.fine, spectra, total, pairs)
        for chunk, least in zip(pairs.split(CHUNK), bounds.split(CHUNK)):
            if len(least) == 0 or least[0] > seen[:, 0].min():
                break
            seen = torch.cat([seen, self._distances(spectra, total, chunk)])
        return self._best(forms, total, seen)

    def registered(self, match: Match) -> np.ndarray:
        """Return the slice of a match as it lies upon the image, uint8 `[channels, height, width]`."""
        found = self.pixels[match.item]
        return shifted(found[..., ::-1] if match.mirrored else found, *match.shift)

    def _spectra(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.fft.rfft2(torch.from_numpy(np.ascontiguousarray(pixels)).float(), s=self.padded)

    def _ranked(self, band: Band, spectra: torch.Tensor, total: float,
                pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs (form of the image, training slice), and their bounds, the lowest first."""
        pairs = pairs[pairs[:, 0].argsort(stable=True)]
        if len(pairs) == 0:
            return pairs, torch.empty(0, dtype=torch.float64)
        own = [pairs[pairs[:, 0] == form, 1] for form in range(len(spectra))]
        bounds = torch.cat([band.bounds(_low(image, band.cycles), total, items)
                            for image, items in zip(spectra, own) if len(items)])
        order = bounds.argsort()
        return pairs[order], bounds[order]

    def _distances(self, spectra: torch.Tensor, total: float, pairs: torch.Tensor) -> torch.Tensor:
        """For each pair the least squared distance, at most the slack too large, the pair and the shift: `[pairs, 5]`,
        float64."""
        theirs = self._spectra(self.pixels[pairs[:, 1].numpy()])
        overlap = torch.fft.irfft2((spectra[pairs[:, 0]] * theirs.conj()).sum(1), s=self.padded)
        shifts = torch.arange(-self.reach, self.reach + 1)
        most, place = overlap[:, shifts][:, :, shifts].flatten(1).max(1)
        energy = total + self.energy[pairs[:, 1]]
        down, right = shifts[place // len(shifts)], shifts[place % len(shifts)]
        return torch.stack([energy - 2 * most.double() + SLACK * energy,
                            *(one.double() for one in (*pairs.T, down, right))], 1)

    def _best(self, forms: np.ndarray, total: float, seen: torch.Tensor) -> Match:
        """The nearest of the pairs that float32 cannot tell apart."""
        slack = 2 * SLACK * (total + self.energy[seen[:, 2].long()])
        close = seen[seen[:, 0] - slack <= seen[:, 0].min()][:, 1:].long().tolist()
        squared, item, form, down, right = min(
            (_squared_distance(forms[form], self.pixels[item], down, right), item, form, down, right)
            for form, item, down, right in close)
        return Match((squared / forms[0].size) ** 0.5 / 255, item, bool(form), (down, -right if form else right))


def judge(drawn: torch.Tensor, unseen: ImageSet, training: ImageSet,
          features: Sequence[np.ndarray] | None, seed: int, on_image: Callable[[int], object] = lambda _: None,
          reconstructions: torch.Tensor | None = None) -> tuple[dict, list[Pair]]:
    """Return what metrics.json says of memorisation, and the PICTURED closest pairs, the closest first.

    Args:
        drawn: samples, uint8 `[m, channels, height, width]`, m at least 1.
        unseen: slices of people who were not trained on, of the same shape.
        training: slices that were trained on, of the same shape.
        features: of `drawn`, `unseen`, `training` and, where given, `reconstructions`, in this order, float
            `[number of images, d]`; or None.
        seed: of the bootstrap. on_image: told how many images have been compared since.
        reconstructions: of unseen slices, uint8 as `drawn`: a soft image is nearer to every other, and this is what
            softness alone comes to.
    Returns: {"samples", "unseen", "unseen_subjects", "training", "shift_pixels", "percentile", "pixels", "features",
        "reconstructions"}. pixels and features are {"samples_median", "samples_min", "unseen_median", "threshold",
        "closer_share", "ci_low", "ci_high", "closest"} (see `compare`), features perhaps None; closest names for each
        of the closest pairs sample, training image and distance, in pixels also whether it is mirrored and how far it
        is shifted. reconstructions: {"samples", "pixels", "features"} likewise, or None.
    Raises: ValueError if shapes or numbers do not fit each other.

    Cost: 40 ms an image on one core for 2,040 training slices of 128².
    """
    shapes = [tuple(one.shape[1:]) for one in (drawn, unseen.pixels, training.pixels)]
    if len(set(shapes)) > 1 or not all(len(one) for one in (drawn, unseen, training)):
        raise ValueError(f"images: expected samples, unseen and training slices of one shape, found {shapes}.")
    chosen = evenly(len(unseen), MOST_UNSEEN)
    subjects = [unseen.subjects[item] for item in chosen]
    gallery = Gallery(training.bytes().numpy())
    samples = drawn.cpu().numpy()
    matches, of_unseen, of_soft = [], [], []
    soft = samples[:0] if reconstructions is None else reconstructions.cpu().numpy()
    for images, found in ((samples, matches), (unseen.bytes().numpy()[chosen], of_unseen), (soft, of_soft)):
        for image in images:
            found.append(gallery.nearest(image))
            on_image(1)
    own, unseen_distances, soft_distances = (np.array([match.distance for match in found])
                                             for found in (matches, of_unseen, of_soft))
    pixels = compare(own, unseen_distances, subjects, seed)
    closest = own.argsort(kind="stable")[:PICTURED]
    pixels["closest"] = [{"sample": int(i), "training": training.names[matches[i].item],
                          "distance": matches[i].distance, "mirrored": matches[i].mirrored,
                          "shift": list(matches[i].shift)} for i in closest]
    pairs = [Pair(torch.from_numpy(samples[i]), torch.from_numpy(gallery.registered(matches[i])),
                  matches[i].distance, pixels["threshold"]) for i in closest]
    report = {"samples": len(drawn), "unseen": len(chosen), "unseen_subjects": len(set(subjects)),
              "training": len(training), "shift_pixels": gallery.reach, "percentile": PERCENTILE, "pixels": pixels,
              "features": None if features is None else _judge_features(features[:3], chosen, subjects, training, seed),
              "reconstructions": None}
    if len(soft):
        of_features = None if features is None else _judge_features((features[3], *features[1:3]), chosen, subjects,
                                                                    training, seed)
        beside = {"pixels": compare(soft_distances, unseen_distances, subjects, seed), "features": of_features}
        # Their interval is not known: they are many slices of the very people who make the threshold.
        report["reconstructions"] = {"samples": len(soft), **{
            name: one and one | {"ci_low": None, "ci_high": None} for name, one in beside.items()}}
    return report, pairs


def compare(samples: np.ndarray, unseen: np.ndarray, subjects: Sequence[str], seed: int) -> dict:
    """Return how near samples are to training beside unseen slices, from the distances of both, `[m]` and `[n]`.

    Args:
        subjects: whose slice each unseen one is. seed: of the draws.
    Returns:
        samples_median, samples_min, unseen_median, and threshold, the 1st percentile of the unseen slices' distances:
            in the distances' unit.
        closer_share: share of samples below the threshold, 0…1, about 0.01 without copies.
        ci_low, ci_high: its 95 % interval; None for fewer than two unseen subjects. Both sources of chance are in it.
            The threshold hangs on the few slices of perhaps one person: it is taken anew from subjects drawn with
            replacement. Samples are independent: given a threshold the share has a Beta distribution (Jeffreys, [3]).
            Samples drawn with replacement would say the same where some are closer, but where none of 100 is they
            would claim to know that none ever will be.
    """
    samples, unseen = np.sort(samples), np.asarray(unseen)
    threshold = np.percentile(unseen, PERCENTILE)
    closer = np.searchsorted(samples, threshold)
    low = high = None
    names, subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    if len(names) > 1:
        generator = np.random.default_rng(seed)
        order = np.lexsort((unseen, subject))  # so that the order of the slices changes nothing
        unseen, subject = unseen[order], subject[order]

        def shares(drawn: np.ndarray) -> np.ndarray:
            thresholds = [np.percentile(unseen.repeat(times[subject]), PERCENTILE) for times in drawn.astype(int)]
            counts = np.searchsorted(samples, thresholds)
            return generator.beta(counts + 0.5, len(samples) - counts + 0.5)

        low, high = bootstrap(shares, [len(names)], generator)
    return {"samples_median": float(np.median(samples)), "samples_min": float(samples[0]),
            "unseen_median": float(np.median(unseen)), "threshold": float(threshold),
            "closer_share": float(closer / len(samples)), "ci_low": low, "ci_high": high}


def picture(pairs: Sequence[Pair]) -> Image.Image:
    """Return the closest pairs side by side: sample, nearest training slice laid upon it, |difference|.

    The distance stands under each, and in brackets the 1st percentile of unseen people's slices.
    """
    samples, nearest = (torch.stack([getattr(pair, name) for pair in pairs]) for name in ("sample", "training"))
    difference = (samples.float() - nearest.float()).abs().mean(1) / 255
    return pictures.strip([("sample", samples), ("nearest slice", nearest),
                        ("|difference|", pictures.Scaled(difference, pictures.DIFFERENCE_SCALE))],
                       captions=[f"{pair.distance:.3f} ({pair.threshold:.3f})" for pair in pairs])


class CopiesJudge(Judge):
    """The distance of each sample to its nearest training slice, in pixels and in features."""

    name = "samples.memorisation"
    columns = ("distance to the nearest training slice", "median", "median of unseen slices",
               "1st percentile of these", "share closer than that")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the report of `judge`, and write closest.png."""
        drawn, unseen, trained = evaluation.samples, evaluation.images, evaluation.trained
        soft = evaluation.reconstructions[evenly(len(unseen), len(drawn))]
        vectors = [evaluation.extractor(images) for images in (drawn, unseen.bytes(), trained.bytes(), soft)]
        vectors = distances.whitened(evaluation.extractor, vectors[2], *vectors)
        with tqdm(desc="nearest training slices", unit="image", leave=False) as bar:
            report, pairs = judge(drawn, unseen, trained, vectors, evaluation.settings.seed, bar.update, soft)
        title = "The samples nearest to a training slice: RMS distance (1st percentile of unseen slices), images 0…1"
        pictures.save_picture(pictures.titled(picture(pairs), title), evaluation.out / "closest.png")
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return the shares that are closer."""
        return [(f"closer to training than 99 % of unseen slices, by {what}", share)
                for what, *_, share in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each distance, of samples and of reconstructions."""
        found = []
        for name, unit in (("pixels", "RMS, images 0…1"), ("features", "Euclidean")):
            for one, who in ((figures[name], "samples"),
                             ((figures["reconstructions"] or {}).get(name), "reconstructions")):
                if one is not None:
                    interval = "" if one["ci_low"] is None else f" ({one['ci_low']:.1%} to {one['ci_high']:.1%})"
                    found.append((f"{who}, {name} ({unit})", *(f"{one[key]:.3f}" for key in (
                        "samples_median", "unseen_median", "threshold")), f"{one['closer_share']:.1%}{interval}"))
        return found


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return an image `[…, height, width]` moved by whole pixels, 0 where nothing came from; negative: up, left."""
    moved = np.zeros_like(image)
    to, origin = _overlap(image.shape, down, right)
    moved[to] = image[origin]
    return moved


def _overlap(shape: tuple[int, ...], down: int, right: int) -> tuple[tuple, tuple]:
    """The place that an image covers after a move, and the part of the image that lies there."""
    to, origin = [...], [...]
    for side, step in zip(shape[-2:], (down, right)):
        to.append(slice(max(step, 0), side + min(step, 0)))
        origin.append(slice(max(-step, 0), side - max(step, 0)))
    return tuple(to), tuple(origin)


def _low(spectra: torch.Tensor, cycles: int) -> torch.Tensor:
    """The coefficients of at most so many cycles, `[…, 2 cycles + 1, cycles + 1]`."""
    return spectra[..., torch.arange(-cycles, cycles + 1), :cycles + 1]


def _energy(pixels: np.ndarray) -> np.ndarray:
    """Sum of squares of each image, float64: a whole number."""
    return np.array([float(np.square(image.astype(np.int64)).sum()) for image in pixels])


def _squared_distance(image: np.ndarray, other: np.ndarray, down: int, right: int) -> int:
    """Sum of squared differences of an image and another, moved, on a black plane without end."""
    first, second = image.astype(np.int64), other.astype(np.int64)
    to, origin = _overlap(image.shape, down, right)
    return int((first**2).sum() + (second**2).sum() - 2 * (first[to] * second[origin]).sum())


def _judge_features(features: tuple[np.ndarray, ...], chosen: np.ndarray, subjects: Sequence[str],
                    training: ImageSet, seed: int) -> dict:
    drawn, unseen, train = (np.asarray(one, dtype=np.float64) for one in features)
    nearest, item = _nearest_features(drawn, train)
    report = compare(nearest, _nearest_features(unseen[chosen], train)[0], subjects, seed)
    report["closest"] = [{"sample": int(i), "training": training.names[item[i]], "distance": float(nearest[i])}
                         for i in nearest.argsort(kind="stable")[:PICTURED]]
    return report


def _nearest_features(points: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest of `among`, and its number, for each point."""
    found = [distance.cdist(points[i:i + 256], among) for i in range(0, len(points), 256)]
    every = np.concatenate(found)
    return every.min(1), every.argmin(1)
