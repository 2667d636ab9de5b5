"""Features of samples and of real slices -> kernel MMD, Fréchet distance, precision, recall, variety.

Samples are compared with slices of unseen subjects. A figure means something only beside what real slices reach: so
each has its floor, the same figure with slices of the training subjects in the place of the samples. Samples as good
as that floor are as close to unseen people as other people are, and a figure clearly better than it asks for a look at
copies of training slices.

Slices of one subject resemble each other, which all figures of this kind are blind to: they take every image for one
of its own. Here a set may say whose each image is, and pairs of one subject then count nowhere as if two people had
been compared. Without that, or with one image a subject, the figures are those of the papers.

1. Bińkowski, Sutherland, Arbel, Gretton 2018, Demystifying MMD GANs.
2. Heusel et al. 2017, GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
3. Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative models.
4. Gretton et al. 2012, A kernel two-sample test.

NOTE: torchmetrics has the first two as classes around a feature network, in float32, and KID as a mean over random
subsets of 50 or 1,000. Here all pairs count, in float64; the tests hold ours to torchmetrics and to SciPy.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from vqvae2.common.statistics import RESAMPLES, as_text, bootstrap, with_interval
from vqvae2.evaluation import features
from vqvae2.evaluation.features import Extractor
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.metrics import similarity

ROWS_AT_A_TIME = 1024
"""Rows of the matrix of all pairs that are in memory together: 160 MB for 20,000 images."""
MOST_TRAINING = 20_000
"""Training slices that are looked at; of more, so many are drawn."""
DRAWS, PAIRS, NEIGHBOURS = 5, 200, 3
STRENGTHS = (0.125, 0.25, 0.5, 1.0)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of two Gaussians with the means and covariances of the features.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), 0 or more; 0 for equal ones (reference 2, equation 6).

    Args:
        first: float64 `[n, dims]`, n at least 2; second: `[m, dims]` likewise.
    It is biased: two sets of one distribution are further apart the smaller they are, and where n is not well above
    dims the covariances say little. Compare figures of equal n only.
    Raises: ValueError for fewer images.
    """
    _check(first, second, least=2)
    covariances = [np.atleast_2d(np.cov(one, rowvar=False)) for one in (first, second)]
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
        first_groups: whose each image is. Pairs of one group are left out, as an image beside itself always is: else
            two sets of slices would differ because either has several slices of its own subjects.
    Returns: None where a set has fewer than two groups.
    """
    _check(first, second, least=1)
    groups = [_groups(first, first_groups), _groups(second, second_groups)]
    value = _mmd(first, second, *(np.ones((1, len(set(one)))) for one in groups), *groups)[0]
    return None if math.isnan(value) else float(value)


def mmd_interval(first: np.ndarray, second: np.ndarray, first_groups: Sequence[str] | None, seed: int,
                 second_groups: Sequence[str] | None = None,
                 resamples: int = RESAMPLES) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of `kernel_mmd` by bootstrap over groups, of both sets at the same time.

    Whole groups are drawn with replacement; copies of one group make no pair, as in the figure itself. None where it
    has no value. With few subjects the interval is too narrow rather than too wide.
    """
    groups = [_groups(first, first_groups), _groups(second, second_groups)]
    counts = [len(set(one)) for one in groups]
    if min(counts) < 2:
        return None, None
    # A draw of two subjects may be the same subject twice: it has no figure.
    return bootstrap(lambda *drawn: _mmd(first, second, *drawn, *groups), counts, seed, resamples)


def precision_recall(real: np.ndarray, made: np.ndarray, neighbours: int = NEIGHBOURS,
                     real_groups: Sequence[str] | None = None,
                     made_groups: Sequence[str] | None = None) -> tuple[float, float] | tuple[None, None]:
    """Return (precision, recall) of made images, each 0…1 (reference 3, equations 1 to 3).

    Around each image of a set lies a ball that reaches to its third neighbour; precision is the share of the made
    images that lie in a ball of a real one, recall the share of the real ones that lie in a ball of a made one.

    Args:
        real: float64 `[n, dims]`; made: `[m, dims]`.
        neighbours: which neighbour the ball reaches to. Of the image's own group none counts: with slices of one
            subject a millimetre apart the balls would else hold that subject alone.
    Both depend on the sizes of the sets: compare figures of equal n and m only.
    Returns: None where an image has fewer neighbours than that.
    """
    _check(real, made, least=1)
    radii = [_radii(one, _groups(one, groups), neighbours)
             for one, groups in ((real, real_groups), (made, made_groups))]
    if not all(np.isfinite(one).all() for one in radii):
        return None, None
    return _share_inside(made, real, radii[0]), _share_inside(real, made, radii[1])


def pairwise_ms_ssim(images: torch.Tensor, groups: Sequence[str] | None, seed: int, pairs: int = PAIRS) -> float | None:
    """Return the mean MS-SSIM of random pairs of different groups, 0…1; near 1 all images are alike.

    Args:
        images: uint8 `[n, channels, height, width]`.
        groups: whose each image is; each its own if None.
        pairs: how many, at most; no pair counts twice.
    Returns: None without a pair, or where MS-SSIM is not defined (images under 11 pixels).
    """
    names = np.arange(len(images)) if groups is None else np.asarray(groups)
    everything = len(images) * (len(images) - 1) // 2
    generator = np.random.default_rng(seed)
    numbers = generator.choice(everything, min(everything, 8 * pairs), replace=False) if everything else np.zeros(0)
    # Pair number k is (i, j), j < i, counted row by row in the lower triangle: row i begins at i (i - 1) / 2.
    i = ((1 + np.sqrt(1 + 8.0 * numbers)) // 2).astype(int)
    j = (numbers - i * (i - 1) // 2).astype(int)
    apart = np.flatnonzero(names[i] != names[j])[:pairs]
    if len(apart) == 0:
        return None
    figures = similarity.image_figures(images[i[apart]], images[j[apart]])
    value = figures["full"]["ms_ssim"].mean().item()
    return value if math.isfinite(value) else None


def judge(drawn: torch.Tensor, unseen: ImageSet, training: ImageSet, extractor: Extractor, seed: int,
          drawn_subjects: Sequence[str] | None = None) -> dict:
    """Return the part `samples` of metrics.json: what is said of samples, each figure beside its real floor.

    Args:
        drawn: the samples, uint8 `[m, channels, height, width]`.
        unseen: slices of subjects that no model was trained on; what samples are compared with.
        training: slices of the training subjects, for the floors; it may be empty. Where there are enough of them (two
            a feature), features of a network of this project are made white by their mean and covariance, so that
            neither the size of the images nor the study decides on the scale of the kernel. Others stay as they are.
        seed: of the bootstrap and of the draws.
        drawn_subjects: whose each of `drawn` is, if they are of people; samples are nobody's.

    mmd: the headline, with a 95 % interval by bootstrap over samples and over unseen subjects. It has no bias, so that
        its floor is taken from all training slices.
    frechet, precision, recall: they depend on the number of images, so that floors are of as many training slices as
        there are samples, drawn without regard to the subject; where there are fewer of them, of so many samples
        too. Each is the mean over 5 draws. `compared` is that number. Fréchet is None unless both sets have more
        images than there are features.
    pairwise_ms_ssim: the variety of samples; real pairs are of different unseen subjects.
    None stands where a figure is not defined.
    """
    generator = np.random.default_rng(seed)
    kept = np.arange(len(training))
    if len(kept) > MOST_TRAINING:
        kept = np.sort(generator.choice(kept, MOST_TRAINING, replace=False))
    made, real = extractor(drawn), extractor(unseen.bytes())
    known = extractor(training.bytes()[kept]) if len(kept) else np.zeros((0, extractor.dims))
    is_white = may_be_white(extractor, known)
    made, real, known = whitened(extractor, known, made, real, known)
    subjects, known_subjects = unseen.subjects, [training.subjects[i] for i in kept]
    report = {"count": len(drawn), "seed": seed,
              "compared_with": {"images": len(unseen), "subjects": len(set(subjects))},
              "features": {"name": extractor.name, "hash": extractor.hash, "dims": extractor.dims,
                           "whitened_by": "training slices" if is_white else None},
              "mmd": _mmd_figures(made, real, known, drawn_subjects, subjects, known_subjects, seed)}
    compared = min(len(made), len(known)) if len(known) else len(made)
    draws = [tuple(np.sort(generator.permutation(len(one))[:compared]) for one in (made, known)) for _ in range(DRAWS)]
    values = [_biased_figures(made[ours], real, drawn_subjects and [drawn_subjects[i] for i in ours], subjects)
              for ours, _ in draws[:1 if compared == len(made) else DRAWS]]  # all samples at once need no draws
    floors = [_biased_figures(known[theirs], real, [known_subjects[i] for i in theirs], subjects)
              for _, theirs in draws] if len(known) else []
    report["compared"] = compared
    for name in ("frechet", "precision", "recall"):
        report[name] = {"value": _mean(values, name), "real_floor": _mean(floors, name)}
    report["pairwise_ms_ssim"] = pairwise_ms_ssim(drawn, drawn_subjects, seed)
    report["real_pairwise_ms_ssim"] = pairwise_ms_ssim(unseen.bytes(), subjects, seed)
    return report


def harm_figures(extractor: Extractor, images: torch.Tensor, subjects: Sequence[str], seed: int,
                 strengths: Sequence[float] = STRENGTHS) -> list[dict]:
    """Return what MMD and Fréchet distance make of harm that was done to real slices: a feature network must see it.

    Args:
        images: uint8 `[n, channels, height, width]`, 32 pixels or more. subjects: whose each is, at least two.
    Returns: rows of {harm, strength, mmd, frechet}. Harmed slices of every other subject stand beside slices of the
        others as they are, and the other way round; the mean of both counts. The first row, of strength 0, is what
        people differ without any harm. frechet is None where there are not more images than features.
    """
    pictures = features.as_seen(images.float() / 255)
    names = np.asarray(subjects)
    first = np.isin(names, np.unique(names)[::2])
    clean = extractor(to_bytes(pictures))
    table = []
    for kind, strength in [("none", 0.0), *((kind, strength) for kind in features.HARMS for strength in strengths)]:
        harmed = clean if kind == "none" else extractor(to_bytes(features.harmed_alike(pictures, kind, strength, seed)))
        values = [{"mmd": kernel_mmd(harmed[one], clean[~one], names[one], names[~one]),
                   **_biased_figures(harmed[one], clean[~one], names[one], names[~one])} for one in (first, ~first)]
        table.append({"harm": kind, "strength": strength} | {name: _mean(values, name) for name in ("mmd", "frechet")})
    return table


def may_be_white(extractor: Extractor, by: np.ndarray) -> bool:
    """Return whether features are made white by those of the training slices `by`: a network of this project, and two
    slices for each feature."""
    return extractor.is_own and len(by) >= 2 * extractor.dims


def whitened(extractor: Extractor, by: np.ndarray, *sets: np.ndarray) -> list[np.ndarray]:
    """Return the sets `[n, dims]` less the mean of the training slices' features `by`, and of their covariance 1, where
    `may_be_white`; else as they are."""
    if not may_be_white(extractor, by):
        return list(sets)
    mean, white = by.mean(0), features.whitening(np.cov(by, rowvar=False))
    return [(one - mean) @ white for one in sets]


def rows(report: dict) -> list[tuple[str, str, str]]:
    """Return what `judge` made as rows (figure, samples, real floor) of a table."""
    mmd, dims = report["mmd"], report["features"]["dims"]
    return [(f"kernel MMD², {dims} features of {report['features']['name']}",
             with_interval(mmd, "value", 4, before="95 % interval "),
             with_interval(mmd, "real_floor", 4, before="95 % interval ", of="real_floor_")),
            ("Fréchet distance²", *(as_text(report["frechet"][key], 3) for key in ("value", "real_floor"))),
            *((name, *(as_text(report[name][key], 3) for key in ("value", "real_floor")))
              for name in ("precision", "recall")),
            ("MS-SSIM of pairs", as_text(report["pairwise_ms_ssim"], 3), as_text(report["real_pairwise_ms_ssim"], 3))]


def _mmd_figures(made: np.ndarray, real: np.ndarray, known: np.ndarray, made_subjects: Sequence[str] | None,
                 subjects: Sequence[str], known_subjects: Sequence[str], seed: int) -> dict:
    figures = {}
    for name, of, images, owners in (("value", "", made, made_subjects),
                                     ("real_floor", "real_floor_", known, known_subjects)):
        low, high = mmd_interval(images, real, owners, seed, subjects) if len(images) else (None, None)
        figures |= {name: kernel_mmd(images, real, owners, subjects) if len(images) else None,
                    f"{of}ci_low": low, f"{of}ci_high": high}
    return figures


def _biased_figures(made: np.ndarray, real: np.ndarray, groups: Sequence[str] | None,
                    subjects: Sequence[str]) -> dict[str, float | None]:
    precision, recall = precision_recall(real, made, NEIGHBOURS, subjects, groups)
    enough = min(len(made), len(real)) > made.shape[1]
    return {"frechet": frechet_distance(made, real) if enough else None, "precision": precision, "recall": recall}


def _mean(figures: list[dict[str, float | None]], name: str) -> float | None:
    values = [one[name] for one in figures]
    return float(np.mean(values)) if values and None not in values else None


def _check(first: np.ndarray, second: np.ndarray, least: int) -> None:
    for one in (first, second):
        if one.ndim != 2 or len(one) < least or one.shape[1] != first.shape[1]:
            raise ValueError(f"features: expected [n, {first.shape[-1]}] with n at least {least}, found "
                             f"{list(one.shape)}.")


def _groups(images: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """The number of each image's group, int `[n]`, from 0; each image its own group if None."""
    if groups is None:
        return np.arange(len(images))
    if len(groups) != len(images):
        raise ValueError(f"groups: expected one for each of {len(images)} images, found {len(groups)}.")
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_A_TIME) for start in range(0, count, ROWS_AT_A_TIME)]


def _weighted_sums(first: np.ndarray, second: np.ndarray, first_weights: np.ndarray,
                   second_weights: np.ndarray) -> np.ndarray:
    """Sum over all pairs of weight x weight x kernel, `[resamples]`; weights are `[resamples, n]`."""
    return sum((first_weights[:, rows].T * (_kernel(first[rows], second) @ second_weights.T)).sum(0)
               for rows in _blocks(len(first)))


def _mean_within(images: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean kernel over pairs of different groups, `[resamples]`; `weights` is how often each group was drawn."""
    order = np.argsort(groups, kind="stable")
    own = np.array([_kernel(images[one], images[one]).sum()
                    for one in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)])
    sizes, of_images = np.bincount(groups), weights[:, groups]
    sums = _weighted_sums(images, images, of_images, of_images) - weights**2 @ own
    pairs = (weights @ sizes) ** 2 - weights**2 @ sizes**2
    return np.divide(sums, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _mmd(first: np.ndarray, second: np.ndarray, first_weights: np.ndarray, second_weights: np.ndarray,
         first_groups: np.ndarray, second_groups: np.ndarray) -> np.ndarray:
    """The figure for each row of weights, `[resamples, groups]`; nan where a set is left with one group."""
    across = _weighted_sums(first, second, first_weights[:, first_groups], second_weights[:, second_groups])
    pairs = first_weights[:, first_groups].sum(1) * second_weights[:, second_groups].sum(1)
    return (_mean_within(first, first_weights, first_groups) + _mean_within(second, second_weights, second_groups)
            - 2 * across / pairs)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    return (squares - 2 * first @ second.T).clip(min=0)


def _radii(images: np.ndarray, groups: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of each image to its k-th neighbour of another group, `[n]`; infinite where there is none."""
    radii = np.full(len(images), np.inf)
    if len(images) > neighbours:
        for some in _blocks(len(images)):
            distances = _squared_distances(images[some], images)
            distances[groups[some][:, None] == groups] = np.inf
            radii[some] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii


def _share_inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    inside = [(_squared_distances(points[some], centres) <= radii).any(1) for some in _blocks(len(points))]
    return float(np.concatenate(inside).mean())
