"""Samples and real slices -> kernel MMD, Fréchet distance, precision, recall, variety, spectrum, edges.

Samples are compared with slices of unseen subjects. A metric has a meaning only beside the value that real slices
reach. So each metric has a floor: the same metric for slices of the training subjects instead of the samples. Samples
that reach the floor are as close to unseen subjects as other subjects are; if a metric is clearly better than its
floor, look for copies of training slices.

Slices of one subject resemble each other, which these metrics ignore: they assume that all images are independent. Here
a set may have groups, the subject of each image; pairs of images of one subject are then left out everywhere. Without
groups, or with one image per subject, the metrics are those of the papers.

1. Bińkowski, Sutherland, Arbel, Gretton 2018, Demystifying MMD GANs.
2. Heusel et al. 2017, GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
3. Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative models.
4. Gretton et al. 2012, A kernel two-sample test.

NOTE: torchmetrics has the first two as classes around a feature network, in float32, and KID as a mean over random
subsets of 50 or 1,000. Here all pairs count, in float64; the tests hold ours to torchmetrics and to SciPy.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vqvae2.common.statistics import RESAMPLES, as_text, bootstrap, evenly, with_interval
from vqvae2.evaluation import features, reasons
from vqvae2.evaluation.features import Extractor
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import similarity, texture

ROWS_AT_A_TIME = 1024
"""Rows of the matrix of all pairs that are in memory together: 160 MB for 20,000 images."""
MOST_TRAINING = 20_000
"""Most training slices that are looked at. Of more, this many are chosen at random."""
MOST_OTHER = 1000
"""Most images of a set that a second feature network looks at, evenly chosen; it takes 20 ms for each on a CPU."""
IMAGENET_EXTRA = "pip install 'vqvae2-brain-mri[imagenet]'"
DRAWS, PAIRS, NEIGHBOURS = 5, 200, 3
STRENGTHS = (0.125, 0.25, 0.5, 1.0)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of two Gaussians with the means and covariances of the features.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), 0 or more; 0 for equal Gaussians (reference 2, equation 6).

    Args:
        first: float64 `[n, dims]`, n at least 2; second: `[m, dims]` likewise.
    The distance is biased: two sets from one distribution are further apart the smaller they are, and the covariances
    are unreliable unless n is well above dims. Compare only distances of equal n.
    """
    covariances = [np.atleast_2d(np.cov(points, rowvar=False)) for points in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # The eigenvalues of C1 C2 are those of the symmetric C1^½ C2 C1^½, which no rounding makes complex.
    crossed = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)
    means = np.square(first.mean(0) - second.mean(0)).sum()
    return max(float(means + sum(map(np.trace, covariances)) - 2 * np.sqrt(crossed).sum()), 0.0)


def kernel_mmd(first: np.ndarray, second: np.ndarray, first_groups: Sequence[str] | None = None,
               second_groups: Sequence[str] | None = None) -> float | None:
    """Return the squared maximum mean discrepancy, unbiased, under the kernel (x·y / dims + 1)³ (reference 1).

    Mean over pairs in the first set + mean over pairs in the second - twice the mean over pairs across (reference 4,
    equation 3), over all pairs. It may be below 0, and is 0 in the mean for two sets of one distribution.

    Args:
        first: float64 `[n, dims]`; second: `[m, dims]`.
        first_groups: the subject of each image; each image is its own group if None. Pairs of one group are left out,
            just as an image is never paired with itself: otherwise two sets of slices would differ merely because each
                has several slices of its own subjects.
    Returns: None where a set has fewer than two groups.
    """
    groups = [_groups(first, first_groups), _groups(second, second_groups)]
    value = _mmd(first, second, *(np.ones((1, len(set(numbers)))) for numbers in groups), *groups)[0]
    return None if math.isnan(value) else float(value)


def mmd_interval(first: np.ndarray, second: np.ndarray, first_groups: Sequence[str] | None, seed: int,
                 second_groups: Sequence[str] | None = None,
                 resamples: int = RESAMPLES) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of `kernel_mmd` by bootstrap over groups, of both sets at the same time.

    Whole groups are drawn with replacement; copies of one group form no pair, as in `kernel_mmd`. Returns (None, None)
    where `kernel_mmd` is None. With few subjects the interval is too narrow rather than too wide.
    """
    groups = [_groups(first, first_groups), _groups(second, second_groups)]
    # A draw of two subjects may be the same subject twice: then the MMD is not defined.
    return bootstrap(lambda *drawn: _mmd(first, second, *drawn, *groups),
                     [len(set(numbers)) for numbers in groups], seed, resamples)


def precision_recall(real: np.ndarray, made: np.ndarray, neighbours: int = NEIGHBOURS,
                     real_groups: Sequence[str] | None = None,
                     made_groups: Sequence[str] | None = None) -> tuple[float, float] | tuple[None, None]:
    """Return (precision, recall) of made images, each 0…1 (reference 3, equations 1 to 3).

    Around each image of a set lies a ball that reaches to its third neighbour; precision is the share of the made
    images that lie in a ball of a real image, recall the share of the real images that lie in a ball of a made image.

    Args:
        real: float64 `[n, dims]`; made: `[m, dims]`.
        neighbours: the number of the neighbour that the ball reaches to. Images of the same group do not count as
            neighbours: otherwise, with slices of one subject a millimetre apart, each ball would contain only that
            subject.
    Both depend on the sizes of the sets: compare them only for equal n and m.
    Returns: (None, None) where an image has fewer neighbours than `neighbours`.
    """
    shares = (_share_inside(made, real, _groups(real, real_groups), neighbours),
              _share_inside(real, made, _groups(made, made_groups), neighbours))
    return (None, None) if None in shares else shares


def pairwise_ms_ssim(images: torch.Tensor, groups: Sequence[str] | None, seed: int, pairs: int = PAIRS) -> float | None:
    """Return the mean MS-SSIM of random pairs of different groups, 0…1; a value near 1 means that all images are alike.

    Args:
        images: uint8 `[n, channels, height, width]`.
        groups: the subject of each image; each image is its own group if None.
        pairs: the largest number of pairs; no pair counts twice.
    Returns: None if there is no pair, or where MS-SSIM is not defined (images under 11 pixels).
    """
    names = np.arange(len(images)) if groups is None else np.asarray(groups)
    everything = len(images) * (len(images) - 1) // 2
    numbers = np.random.default_rng(seed).choice(everything, min(everything, 8 * pairs), replace=False)
    # Pair number k is (i, j), j < i, counted row by row in the lower triangle: row i begins at i (i - 1) / 2.
    i = ((1 + np.sqrt(1 + 8.0 * numbers)) // 2).astype(int)
    j = (numbers - i * (i - 1) // 2).astype(int)
    apart = np.flatnonzero(names[i] != names[j])[:pairs]
    value = similarity.image_figures(images[i[apart]], images[j[apart]])["full"]["ms_ssim"].mean().item()
    return value if math.isfinite(value) else None  # nan without a pair


def judge(drawn: torch.Tensor, unseen: ImageSet, training: ImageSet, extractor: Extractor, seed: int,
          drawn_subjects: Sequence[str] | None = None, other: Extractor | None = None,
          once: Callable[[object, Callable], object] = lambda _, make: make()) -> dict:
    """Return the part `samples` of metrics.json, each metric beside its floor, the value that real slices reach.

    Args:
        drawn: the samples, uint8 `[m, channels, height, width]`.
        unseen: slices of subjects that no model was trained on, with which samples are compared.
        training: slices of the training subjects, for the floors; it may be empty. If there are enough of them (two per
            feature), features of this project's network are whitened by their mean and covariance, so that the scale of
            the kernel depends neither on the size of the images nor on the study. Features of other networks are not
            changed.
        seed: of the bootstrap and of the draws.
        drawn_subjects: the subject of each image in `drawn`, if the images are of subjects; samples have no subject.
        other: a second feature network, which knows nothing of this project; its figures are `other_mmd`.
        once: (what is computed, function that computes it) -> its result. Several sets that are compared with the same
            slices may share one that keeps what it has computed of these slices alone (`keeping`).

    mmd: the headline, with a 95 % interval by bootstrap over samples and over unseen subjects. MMD has no bias, so its
        floor comes from all training slices.
    frechet, precision, recall: they depend on the number of images, so the floors are computed from as many training
        slices as there are samples, chosen at random whatever the subject. If there are fewer training slices, only as
        many samples are used. `compared` is this number. Each metric is the mean over 5 random choices. Fréchet is None
        unless both sets have more images than there are features.
    pairwise_ms_ssim: the variety of samples; real pairs are of different unseen subjects.
    spectrum: power over that of unseen slices, by band of frequencies. edges: distance of the gradients to theirs, at
        two scales. Both as in `metrics.texture`, with intervals and with all images.
    A metric that is not defined is None.
    """
    generator = np.random.default_rng(seed)
    kept = np.arange(len(training)) if len(training) <= MOST_TRAINING else np.sort(
        generator.choice(len(training), MOST_TRAINING, replace=False))
    made, real, plain = extractor(drawn), extractor(unseen.bytes()), extractor(training.bytes()[kept])
    made, real, known = whitened(extractor, plain, made, real, plain)
    subjects, known_subjects = unseen.subjects, [training.subjects[i] for i in kept]
    compared = min(len(made), len(known)) or len(made)
    draws = [tuple(np.sort(generator.permutation(len(points))[:compared]) for points in (made, known))
             for _ in range(DRAWS)]
    values = [_biased_figures(made[ours], real, drawn_subjects and [drawn_subjects[i] for i in ours], subjects)
              for ours, _ in draws[:1 if compared == len(made) else DRAWS]]  # all samples: one draw
    floors = once(("floors", len(made)), lambda: [
        _biased_figures(known[theirs], real, [known_subjects[i] for i in theirs], subjects)
        for _, theirs in draws if len(known)])
    sets = (drawn, drawn_subjects), (training.bytes()[kept], known_subjects), (unseen.bytes(), subjects)
    return {"count": len(drawn), "seed": seed,
            "compared_with": {"images": len(unseen), "subjects": len(set(subjects))},
            "features": {"name": extractor.name, "hash": extractor.hash, "dims": extractor.dims,
                         "whitened_by": None if known is plain else "training slices"},
            "mmd": _mmd_beside((made, drawn_subjects), (known, known_subjects), (real, subjects), seed, once),
            "compared": compared,
            **{name: {"value": _mean(values, name), "real_floor": _mean(floors, name)}
               for name in ("frechet", "precision", "recall")},
            "pairwise_ms_ssim": pairwise_ms_ssim(drawn, drawn_subjects, seed),
            "real_pairwise_ms_ssim": once("pairs", lambda: pairwise_ms_ssim(unseen.bytes(), subjects, seed)),
            "other_mmd": other and _other_mmd(other, *sets, seed, once),
            **_texture(*sets, seed, once)}


def keeping() -> Callable[[object, Callable], object]:
    """Return a function (what is computed, function that computes it) -> its result, which computes everything once."""
    kept = {}

    def once(what: object, make: Callable) -> object:
        if what not in kept:
            kept[what] = make()
        return kept[what]

    return once


def harm_figures(extractor: Extractor, images: torch.Tensor, subjects: Sequence[str], seed: int,
                 strengths: Sequence[float] = STRENGTHS) -> list[dict]:
    """Return MMD and Fréchet distance of real slices that were harmed: a good feature network notices the harm.

    Args:
        images: uint8 `[n, channels, height, width]`, 32 pixels or more. subjects: of each image, at least two.
    Returns: rows of {harm, strength, mmd, frechet, power, edges}. Harmed slices of every second subject are compared
    with unharmed slices of the other subjects, and the other way round; the result is the mean of both. The first row,
    of strength 0, shows how much subjects differ without harm. frechet is None unless there are more images than
    features. power: of the band of frequencies that is furthest from 1 (see `metrics.texture`). edges: the fine ones.
    """
    pictures = features.as_seen(images.float() / 255)
    names = np.asarray(subjects)
    first = np.isin(names, np.unique(names)[::2])
    clean = _measured(extractor, pictures)
    table = []
    for kind, strength in [("none", 0.0), *((kind, strength) for kind in features.PROVED_ON for strength in strengths)]:
        harmed = clean if kind == "none" else _measured(
            extractor, features.harmed_alike(pictures, kind, strength, seed))
        values = [_harm(*([part[half] for part in made] for made, half in ((harmed, half), (clean, ~half))),
                        names[half], names[~half]) for half in (first, ~first)]
        table.append({"harm": kind, "strength": strength} | {name: _mean(values, name) for name in values[0]})
    return table


def _measured(extractor: Extractor, pictures: torch.Tensor) -> list[np.ndarray]:
    """Return features, powers and gradients of pictures `[n, 1, 128, 128]` in 0…1."""
    images = to_bytes(pictures)
    return [extractor(images), texture.band_powers(images), texture.gradient_shares(images)]


def _harm(harmed: list[np.ndarray], clean: list[np.ndarray], groups: Sequence[str],
          clean_groups: Sequence[str]) -> dict[str, float | None]:
    """Return what `harm_figures` says of one half; each side is as `_measured` returns it."""
    (made, *of_made), (real, *of_real) = harmed, clean
    ratios = texture.power_ratios(of_made[0], of_real[0], groups, clean_groups, 0)["value"]
    return {"mmd": kernel_mmd(made, real, groups, clean_groups),
            "frechet": _biased_figures(made, real, groups, clean_groups)["frechet"],
            "power": max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-12)))),
            "edges": texture.edge_distance(of_made[1], of_real[1], groups, clean_groups, 0)["value"]}


def whitened(extractor: Extractor, by: np.ndarray, *sets: np.ndarray) -> list[np.ndarray]:
    """Return sets `[n, dims]` of features, whitened by the mean and covariance of `by`, features of training slices.

    For networks from outside this project, or fewer than two slices per feature, the arrays are returned unchanged.
    """
    if extractor.config is None or len(by) < 2 * extractor.dims:
        return list(sets)
    mean, white = by.mean(0), features.whitening(np.cov(by, rowvar=False))
    return [(points - mean) @ white for points in sets]


def rows(report: dict) -> list[tuple[str, str, str]]:
    """Return the report of `judge` as rows (figure, samples, real floor) of a table."""
    def beside(name: str, figures: dict, digits: int, keys: tuple[str, str] = ("value", "real_floor")) -> list[str]:
        return [f"– ({reasons.of_samples(report, name, is_real=is_real)})" if figures[key] is None else with_interval(
            figures, key, digits, before="95 % interval ", of="real_floor_" * is_real)
            for is_real, key in enumerate(keys)]

    def network_of(found: dict) -> str:
        return f"kernel MMD², {found['features']['dims']} features of {found['features']['name']}"

    def powers(key: str) -> str:
        known = any(value is not None for value in spectrum[key])
        return " ".join(as_text(value, 2) for value in spectrum[key]) if known else (
            f"– ({reasons.of_samples(report, 'spectrum', is_real=key != 'value')})")

    other, spectrum = report.get("other_mmd"), report.get("spectrum")  # older figures have neither
    return [(network_of(report), *beside("mmd", report["mmd"], 4)),
            *([(network_of(other), *beside("other_mmd", other, 4)) if other else (
                "kernel MMD², a network trained on photographs", f"not computed without {IMAGENET_EXTRA}", "–")]
              if "other_mmd" in report else []),
            *((title, *beside(name, report[name], 3)) for title, name in (
                ("Fréchet distance²", "frechet"), ("precision", "precision"), ("recall", "recall"))),
            ("MS-SSIM of pairs", *beside("pairwise_ms_ssim", report, 3, ("pairwise_ms_ssim",
                                                                         "real_pairwise_ms_ssim"))),
            *([(f"power / real slices, by {texture.CYCLES} cycles a picture", powers("value"), powers("real_floor")),
               *((f"distance of {scale} edges", *beside("edges", figures, 4))
                 for scale, figures in report["edges"].items())] if spectrum else [])]


def _texture(made: tuple, known: tuple, real: tuple, seed: int, once: Callable) -> dict:
    """Return spectrum and edges of made images, and of the training slices as the floor, beside real slices.

    Each set is its images, uint8 `[n, channels, height, width]`, and their subjects or None.
    """
    def compared(name: str, compare: Callable[..., dict], measure: Callable[[torch.Tensor], np.ndarray]) -> dict:
        others, reals = once(("texture", name), lambda: (measure(known[0]), measure(real[0])))
        floor = once(("texture floor", name), lambda: compare(others, reals, known[1], real[1], seed))
        own = compare(measure(made[0]), reals, made[1], real[1], seed)
        return {"value": own.pop("value"), "real_floor": floor["value"], **own,
                **{f"real_floor_{end}": floor[end] for end in floor if end != "value"}}

    return {"spectrum": {"cycles": texture.bands(min(real[0].shape[2:])),
                         **compared("spectrum", texture.power_ratios, texture.band_powers)},
            "edges": {name: compared(name, texture.edge_distance, functools.partial(texture.gradient_shares, side=side))
                      for name, side in texture.SCALES.items()}}


def _other_mmd(extractor: Extractor, made: tuple, known: tuple, real: tuple, seed: int, once: Callable) -> dict:
    """Return kernel MMD and its floor in the features of a second network, of at most MOST_OTHER images of each set."""
    sides = []
    for images, groups in (made, known, real):
        some = evenly(len(images), MOST_OTHER)
        sides.append((extractor(images[some]), groups and [groups[item] for item in some]))
    return {"features": {"name": extractor.name, "hash": extractor.hash, "dims": extractor.dims},
            "images": [len(features) for features, _ in sides],
            **_mmd_beside(*sides, seed, lambda what, make: once(("other", what), make))}


def _mmd_beside(made: tuple, known: tuple, real: tuple, seed: int, once: Callable) -> dict:
    """Return the kernel MMD of made images and real slices, and its floor: each set is its features, and groups."""
    return (_mmd_figures("value", "", *made, *real, seed)
            | once("floor", lambda: _mmd_figures("real_floor", "real_floor_", *known, *real, seed)))


def _mmd_figures(name: str, prefix: str, images: np.ndarray, groups: Sequence[str] | None, real: np.ndarray,
                 real_groups: Sequence[str], seed: int) -> dict[str, float | None]:
    """Return the kernel MMD of images and real slices as `name`, and the ends of its interval."""
    low, high = mmd_interval(images, real, groups, seed, real_groups) if len(images) else (None, None)
    return {name: kernel_mmd(images, real, groups, real_groups) if len(images) else None,
            f"{prefix}ci_low": low, f"{prefix}ci_high": high}


def _biased_figures(made: np.ndarray, real: np.ndarray, groups: Sequence[str] | None,
                    subjects: Sequence[str]) -> dict[str, float | None]:
    precision, recall = precision_recall(real, made, NEIGHBOURS, subjects, groups)
    enough = min(len(made), len(real)) > made.shape[1]
    return {"frechet": frechet_distance(made, real) if enough else None, "precision": precision, "recall": recall}


def _mean(figures: list[dict[str, float | None]], name: str) -> float | None:
    values = [drawn[name] for drawn in figures]
    return float(np.mean(values)) if values and None not in values else None


def _groups(images: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Return the number of each image's group, int `[n]`, from 0; each image is its own group if None."""
    return np.unique(np.arange(len(images)) if groups is None else np.asarray(groups), return_inverse=True)[1]


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_A_TIME) for start in range(0, count, ROWS_AT_A_TIME)]


def _weighted_sums(first: np.ndarray, second: np.ndarray, first_weights: np.ndarray,
                   second_weights: np.ndarray) -> np.ndarray:
    """Return the sum over all pairs of weight x weight x kernel, `[resamples]`; weights are `[resamples, n]`."""
    return sum((first_weights[:, rows].T * (_kernel(first[rows], second) @ second_weights.T)).sum(0)
               for rows in _blocks(len(first)))


def _mean_within(images: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean kernel over pairs of different groups, `[resamples]`; `weights` are the draws of each group."""
    order = np.argsort(groups, kind="stable")
    own = np.array([_kernel(images[items], images[items]).sum()
                    for items in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)])
    sizes, of_images = np.bincount(groups), weights[:, groups]
    sums = _weighted_sums(images, images, of_images, of_images) - weights**2 @ own
    pairs = (weights @ sizes) ** 2 - weights**2 @ sizes**2
    return np.divide(sums, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _mmd(first: np.ndarray, second: np.ndarray, first_weights: np.ndarray, second_weights: np.ndarray,
         first_groups: np.ndarray, second_groups: np.ndarray) -> np.ndarray:
    """Return the MMD for each row of weights, `[resamples, groups]`; nan where only one group of a set is left."""
    across = _weighted_sums(first, second, first_weights[:, first_groups], second_weights[:, second_groups])
    pairs = first_weights[:, first_groups].sum(1) * second_weights[:, second_groups].sum(1)
    return (_mean_within(first, first_weights, first_groups) + _mean_within(second, second_weights, second_groups)
            - 2 * across / pairs)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2 * first @ second.T).clip(min=0)


def _share_inside(points: np.ndarray, centres: np.ndarray, groups: np.ndarray, neighbours: int) -> float | None:
    """Return the share of points in a ball around a centre that reaches to its k-th neighbour of another group.

    Returns None where a centre has too few neighbours.
    """
    last, radii = min(neighbours, len(centres)) - 1, np.empty(len(centres))
    for some in _blocks(len(centres)):
        distances = _squared_distances(centres[some], centres)
        distances[groups[some][:, None] == groups] = np.inf
        radii[some] = np.partition(distances, last, axis=1)[:, last]
    inside = [(_squared_distances(points[some], centres) <= radii).any(1) for some in _blocks(len(points))]
    return float(np.concatenate(inside).mean()) if np.isfinite(radii).all() else None
