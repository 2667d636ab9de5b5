"""Samples, unseen slices and training slices -> whether samples are copies: their distance to the nearest training
slice.

A distance alone says nothing, because all slices of one plane are alike. So the same distance is measured for slices of
subjects whom the model never saw. `closer_share` is the share of samples whose distance is below the 1st percentile of
the unseen slices' distances: about 0.01 if samples are as far from the training slices as unseen subjects are, much
more if some samples are copies. Its 95 % interval starts above 0.01 only if neither chance nor the choice of the few
unseen subjects explains the share.

How to read the report: first the share, then the five closest pairs (`picture`), which a person has to look at. Samples
are blurrier than slices, and a blurred image is nearer to every other image in pixels: if the share is above 0.01 but
the pairs differ in their folds, the cause is blur, not memorisation. The part of the report on the reconstructions of
the unseen slices has the share that blur alone causes. A low share does not exclude copies of parts, or copies that
were bent or rotated.

- pixels: root mean square difference, images 0…1, on an infinite black plane, so that pixels that a shift moves beyond
  the border still count; the minimum over all training slices, mirrored or not, and all shifts by whole pixels up to
  REACH of the width both ways. The distance is symmetric. It is exact: see `Gallery`.
- features: Euclidean distance of feature vectors, without registration.

References
1. Meehan, Chaudhuri, Dasgupta 2020, A non-parametric test to detect data-copying in generative models (why a distance
   needs unseen data beside it).
2. Lewis 1995, Fast normalized cross-correlation (all shifts at once by the Fourier transform).
3. Brown, Cai, DasGupta 2001, Interval estimation for a binomial proportion (Jeffreys interval).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import fft, ndimage
from scipy.spatial import distance

from vqvae2.common.progress import Bar
from vqvae2.common.statistics import bootstrap, evenly
from vqvae2.evaluation import distances
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet
from vqvae2.plots import pictures

REACH = 1 / 16
"""Largest shift in each direction, as a share of the image's width (at least 1 pixel)."""
PERCENTILE, PICTURED = 1, 5
MOST_UNSEEN = 1000
"""If there are more unseen slices, this many are chosen evenly."""
CYCLES, CHUNK = (10, 24), 16
"""Bounds know the frequencies up to so many cycles over the padded picture: a quick one for all pairs, and a tight one
for those that the quick one leaves, some 15 % on slices of 128². The exact distance of this many pairs is computed at
a time, of some 80 of 4,160 pairs."""
SLACK = 1e-5
"""Largest error of a squared distance in float32, as a share of both images' energy; 3e-7 was measured at most."""


class Match(NamedTuple):
    """The training slice nearest to an image, and the mirroring and shift that register it to the image."""

    distance: float
    """Root mean square difference, images 0…1."""
    item: int
    """Number of the training slice."""
    mirrored: bool
    """Whether the slice is mirrored first, left to right."""
    shift: tuple[int, int]
    """Pixels by which the slice is then moved down and to the right."""


class Gallery:
    """Training slices, among which the slice nearest to an image is found exactly, without comparing all of them.

    Lower bounds of the distances (`_Bounds`) are computed first: quick ones of all pairs, then tight ones of those that
    may still be the nearest. Pairs are compared in order of their bounds, from the lowest, all shifts of a pair at once
    by cross-correlation [2], until the next bound is above the best distance: then no other pair can be nearer.

    Float32 is used only to exclude pairs that are further than SLACK; among the remaining pairs the nearest is found in
    whole numbers.
    """

    def __init__(self, pixels: np.ndarray):
        """Take training slices, uint8 `[n, channels, height, width]`, n at least 1. They are not copied."""
        self.pixels, self.reach = pixels, max(1, round(REACH * pixels.shape[3]))
        # Enough zeros that a shifted picture does not reappear on the other side.
        self.padded = [fft.next_fast_len(side + self.reach, real=True) for side in pixels.shape[2:]]
        self.energy = torch.from_numpy(_energy(pixels))
        cycles = [min(most, (min(self.padded) - 1) // 2) for most in CYCLES]
        low = torch.cat([_low(self._spectra(some), cycles[1]) for some in np.array_split(
            pixels, len(pixels) // 64 + 1)])
        rows = low[:, :, cycles[1] - cycles[0]:cycles[1] + cycles[0] + 1, :cycles[0] + 1].contiguous()
        self.quick, self.tight = (_Bounds(own, self.energy, self.padded, self.reach) for own in (rows, low))

    def nearest(self, image: np.ndarray) -> Match:
        """Return the nearest training slice of an image, uint8 `[channels, height, width]`; the first of equals."""
        forms = np.stack([image, image[..., ::-1]])  # mirroring the image is equivalent to mirroring all slices
        spectra, total, number = self._spectra(forms), _energy(forms[:1])[0], len(self.pixels)
        bounds = torch.cat([self.quick.of(own, total) for own in spectra])
        first, rest = bounds.argsort().tensor_split([CHUNK])
        seen = self._distances(spectra, total, first // number, first % number)
        pairs = rest[bounds[rest] <= seen[:, 0].min()].sort().values
        bounds = torch.cat([self.tight.of(own, total, pairs[pairs // number == form] % number)
                            for form, own in enumerate(spectra)])
        for places in bounds.argsort().split(CHUNK):
            if not len(places) or bounds[places[0]] > seen[:, 0].min():
                break
            seen = torch.cat([seen, self._distances(spectra, total, pairs[places] // number, pairs[places] % number)])
        slack = 2 * SLACK * (total + self.energy[seen[:, 1].long()])
        close = seen[seen[:, 0] - slack <= seen[:, 0].min()][:, 1:].long().tolist()
        overlaps = [(forms[form].astype(np.int64) * ndimage.shift(self.pixels[item], (0, *shift), order=0)).sum()
                    for item, form, *shift in close]
        squared, item, form, down, right = min(
            (total + self.energy[pair[0]].item() - 2 * overlap, *pair) for overlap, pair in zip(overlaps, close))
        return Match(float((squared / image.size) ** 0.5 / 255), item, bool(form), (down, -right if form else right))

    def registered(self, match: Match) -> np.ndarray:
        """Return the slice of a match, registered to the image, uint8 `[channels, height, width]`."""
        found = self.pixels[match.item]
        return ndimage.shift(found[..., ::-1] if match.mirrored else found, (0, *match.shift), order=0)

    def _spectra(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.fft.rfft2(torch.from_numpy(np.ascontiguousarray(pixels)).float(), s=self.padded)

    def _distances(self, spectra: torch.Tensor, total: float, forms: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return for each pair the least squared distance (too large by at most the slack), the slice, the mirroring of
        the image and the shift: `[pairs, 5]`, float64."""
        overlap = torch.fft.irfft2((spectra[forms] * self._spectra(self.pixels[items.numpy()]).conj()).sum(1),
                                   s=self.padded)
        shifts = torch.arange(-self.reach, self.reach + 1)
        most, place = overlap[:, shifts][:, :, shifts].flatten(1).max(1)
        energy = total + self.energy[items]
        return torch.stack([energy - 2 * most.double() + SLACK * energy, items.double(), forms.double(),
                            shifts[place // len(shifts)].double(), shifts[place % len(shifts)].double()], 1)


class _Bounds:
    """Lower bounds of the squared distances from an image to training slices, whatever the shift.

    The squared distance of two images is the sum over their Fourier coefficients (Parseval). A shift rotates phases:
    the part of the low frequencies is computed for every shift by a small product of matrices. The part of the high
    frequencies is at least (|a| - |b|)² of their norms, whatever the shift (triangle inequality). The sum of both is a
    lower bound.

    Args:
        low: of the slices, as `_low` returns them. energy: their sums of squares, float64 `[n]`.
        padded: height and width of the padded pictures. reach: largest shift.
    """

    def __init__(self, low: torch.Tensor, energy: torch.Tensor, padded: Sequence[int], reach: int):
        self.low, self.energy, self.cycles = low, energy, low.shape[3] - 1
        self.weights = torch.full((self.cycles + 1,), 2 / (padded[0] * padded[1]))
        self.weights[0] /= 2  # the other columns also stand for their mirror images, which rfft2 leaves out
        shifts = torch.arange(-reach, reach + 1, dtype=torch.float64)
        down, right = (torch.exp(2j * torch.pi / side * shifts[:, None] * torch.arange(first, self.cycles + 1))
                       for side, first in zip(padded, (-self.cycles, 0)))
        self.right = (right * self.weights).to(torch.complex64).T.contiguous()
        # Only the real part of the second product is needed, so it is a product of real matrices.
        self.down = torch.view_as_real(down.conj().to(torch.complex64)).flatten(1).T.contiguous()
        self.within = self._energy_within(low)
        self.beyond = (energy - self.within).clamp(min=0).sqrt()

    def of(self, spectrum: torch.Tensor, total: float, items: torch.Tensor | None = None) -> torch.Tensor:
        """Return the bounds of all slices, or of some `items`, float64 `[n]`, from an image's spectrum and its sum of
        squares `total`."""
        low = _low(spectrum, self.cycles)
        others, within, beyond, energy = (values if items is None else values[items] for values in (
            self.low, self.within, self.beyond, self.energy))
        turned = [(low * some.conj()).sum(1) @ self.right for some in others.split(256)]
        most = [(torch.view_as_real(some.transpose(1, 2).contiguous()).flatten(2) @ self.down).flatten(1).amax(1)
                for some in turned]
        own = self._energy_within(low)
        return (own + within - 2 * torch.cat(most).double() + ((total - own).clamp(min=0).sqrt() - beyond).square()
                - SLACK * (total + energy))

    def _energy_within(self, low: torch.Tensor) -> torch.Tensor:
        """Return the sum of squares of the images that the low frequencies `[…, channels, rows, columns]` describe,
        float64."""
        return (torch.view_as_real(low).square().sum(-1) * self.weights).sum((-3, -2, -1)).double()


def _low(spectra: torch.Tensor, cycles: int) -> torch.Tensor:
    """Return the coefficients of low frequencies of spectra, `[…, channels, 2 cycles + 1, cycles + 1]`."""
    return spectra[..., torch.arange(-cycles, cycles + 1), :cycles + 1]


def judge(drawn: torch.Tensor, unseen: ImageSet, training: ImageSet, reconstructions: torch.Tensor,
          features: Sequence[np.ndarray], seed: int) -> tuple[dict, torch.Tensor]:
    """Return the report on memorisation for metrics.json, and the training slices of the closest pairs.

    Args:
        drawn: samples, uint8 `[m, channels, height, width]`, m at least 1.
        unseen: slices of subjects that the model was not trained on, of the same shape.
        training: slices that the model was trained on, of the same shape, at least 1.
        reconstructions: of unseen slices, uint8 as `drawn`: a blurred image is nearer to every other image, and the
            metrics of the reconstructions show the effect of blur alone.
        features: of `drawn`, `unseen`, `training` and `reconstructions`, float `[number of images, d]`.
        seed: of the bootstrap.
    Returns: {"samples", "unseen", "unseen_subjects", "training", "shift_pixels", "percentile", "pixels", "features",
        "reconstructions"}. pixels and features are {"samples_median", "samples_min", "unseen_median", "threshold",
        "closer_share", "ci_low", "ci_high", "closest"} (see `compare`); closest has for each of the closest pairs the
        sample, the training image and the distance; in pixels also whether the training image is mirrored and how far
        it is shifted. reconstructions: {"samples", "pixels", "features"}, with the same keys.
        The slices are uint8 `[pairs, channels, height, width]`, mirrored and moved onto the samples of
        pixels["closest"], in the same order.

    Cost: 50 ms an image on one core for 2,040 training slices of 128².
    """
    chosen = evenly(len(unseen), MOST_UNSEEN)
    subjects = [unseen.subjects[item] for item in chosen]
    gallery = Gallery(training.bytes().numpy())
    asked = (drawn, unseen.bytes()[chosen], reconstructions)
    all_of_them = iter(Bar(torch.cat(asked).numpy(), desc="nearest training slices", unit="image"))
    matches, of_unseen, of_soft = ([gallery.nearest(next(all_of_them)) for _ in images] for images in asked)
    own, unseen_distances, soft = (np.array([match.distance for match in found])
                                   for found in (matches, of_unseen, of_soft))
    pixels = compare(own, unseen_distances, subjects, seed)
    closest = [(i, matches[i]) for i in own.argsort(kind="stable")[:PICTURED].tolist()]
    pixels["closest"] = [{"sample": i, "training": training.names[match.item], "distance": match.distance,
                          "mirrored": match.mirrored, "shift": list(match.shift)} for i, match in closest]
    # The reconstructions have no interval: they are slices of the same subjects who determine the threshold.
    unknown = {"ci_low": None, "ci_high": None}
    report = {"samples": len(drawn), "unseen": len(chosen), "unseen_subjects": len(set(subjects)),
              "training": len(training), "shift_pixels": gallery.reach, "percentile": PERCENTILE, "pixels": pixels,
              "features": _compare_features(features, chosen, subjects, training, seed),
              "reconstructions": {
                  "samples": len(reconstructions),
                  "pixels": compare(soft, unseen_distances, subjects, seed) | unknown,
                  "features": _compare_features([features[3], *features[1:]], chosen, subjects, training, seed)
                  | unknown}}
    return report, torch.from_numpy(np.stack([gallery.registered(match) for _, match in closest]))


def compare(samples: np.ndarray, unseen: np.ndarray, subjects: Sequence[str], seed: int) -> dict:
    """Return how near samples are to training slices, compared with unseen slices, from the distances of both, `[m]`
    and `[n]`.

    Args:
        subjects: the subject of each unseen slice. seed: of the draws of subjects.
    Returns:
        samples_median, samples_min, unseen_median, and threshold, the 1st percentile of the unseen slices' distances:
            in the distances' unit.
        closer_share: share of samples below the threshold, 0…1, about 0.01 without copies.
        ci_low, ci_high: its 95 % interval; None for fewer than two unseen subjects. Both sources of chance are in it.
            The threshold may depend on a few slices of one subject, so it is computed again for subjects drawn with
            replacement. Samples are independent: given a threshold the share has a Beta distribution (Jeffreys, [3]).
            Drawing samples with replacement would give the same interval where some are closer; but if none of 100 is
            closer, its interval would be 0 to 0.
    """
    samples, generator = np.sort(samples), np.random.default_rng(seed)
    names, subject = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)

    def shares(drawn: np.ndarray) -> np.ndarray:
        thresholds = [np.percentile(unseen.repeat(times[subject]), PERCENTILE) for times in drawn.astype(int)]
        counts = np.searchsorted(samples, thresholds)
        return generator.beta(counts + 0.5, len(samples) - counts + 0.5)

    low, high = bootstrap(shares, [len(names)], generator) if len(names) > 1 else (None, None)
    threshold = np.percentile(unseen, PERCENTILE)
    return {"samples_median": float(np.median(samples)), "samples_min": float(samples[0]),
            "unseen_median": float(np.median(unseen)), "threshold": float(threshold),
            "closer_share": float(np.searchsorted(samples, threshold) / len(samples)), "ci_low": low, "ci_high": high}


def picture(samples: torch.Tensor, nearest: torch.Tensor, report: dict) -> Image.Image:
    """Return the closest pairs side by side: sample, nearest training slice laid upon it, |difference|.

    The distance is below each pair, with the 1st percentile of the unseen slices' distances in brackets. `samples` are
    all judged samples; `nearest` and `report` were returned by `judge`.
    """
    closest, threshold = report["pixels"]["closest"], report["pixels"]["threshold"]
    samples = samples[[pair["sample"] for pair in closest]]
    difference = (samples.float() - nearest.float()).abs().mean(1) / 255
    title = "The samples nearest to a training slice: RMS distance (1st percentile of unseen slices), images 0…1"
    return pictures.strip([("sample", samples), ("nearest slice", nearest),
                           ("|difference|", pictures.ScaledMaps(difference, pictures.DIFFERENCE_SCALE))],
                          captions=[f"{pair['distance']:.3f} ({threshold:.3f})" for pair in closest], title=title)


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
        report, nearest = judge(drawn, unseen, trained, soft, vectors, evaluation.settings.seed)
        pictures.save_picture(picture(drawn, nearest, report), evaluation.out / "closest.png")
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return the shares of samples that are closer than the threshold."""
        return [(f"closer to training than 99 % of unseen slices, by {what}", share)
                for what, *_, share in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each kind of distance of the samples and of the reconstructions."""
        judged = [(f"{who}, {what}", found[name]) for name, what in (
            ("pixels", "pixels (RMS, images 0…1)"), ("features", "features (Euclidean)"))
            for who, found in (("samples", figures), ("reconstructions", figures["reconstructions"]))]
        intervals = ["" if found["ci_low"] is None else f" ({found['ci_low']:.1%} to {found['ci_high']:.1%})"
                     for _, found in judged]
        return [(what, *(f"{found[key]:.3f}" for key in ("samples_median", "unseen_median", "threshold")),
                 f"{found['closer_share']:.1%}{interval}") for (what, found), interval in zip(judged, intervals)]


def _energy(pixels: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each image, float64: a whole number."""
    return np.array([np.square(image, dtype=np.int64).sum() for image in pixels], dtype=float)


def _compare_features(features: Sequence[np.ndarray], chosen: np.ndarray, subjects: Sequence[str], training: ImageSet,
                      seed: int) -> dict:
    """Return `compare` of Euclidean distances, and the closest pairs; `features` are of samples, unseen, training."""
    every, unseen = (distance.cdist(points, features[2]) for points in (features[0], features[1][chosen]))
    nearest, items = every.min(1), every.argmin(1)
    return compare(nearest, unseen.min(1), subjects, seed) | {"closest": [
        {"sample": i, "training": training.names[items[i]], "distance": float(nearest[i])}
        for i in nearest.argsort(kind="stable")[:PICTURED].tolist()]}
