"""Samples that were told what real slices have -> do they hold it, and have they as much of each tissue?

Whoever uses samples asks for a place or an age and takes its anatomy for granted. So as many samples as the report has
are drawn here anew, each told what the manifest says of one slice of the split that is judged: samples and real slices
have the same positions, ages and whatever else the priors are told.

- Told and read: a small network (`models/classifier.py`) learns to read each number that the priors are told from
  training slices, and reads it from the samples. If they hold what they were told, its error is that on real slices of
  unseen people. It learns from the reconstructions of the training slices too: else it would read the decoder's
  softness as a place (at 64 by 64 pixels R² 0.89 on reconstructions instead of 0.95). A number that cannot be read from
  real slices, such as age from few people, says nothing about samples. A blind guess is the median of the training
  slices.
- Shares of tissue: fluid, grey and white matter of each brain (`metrics/tissue.py`), and the Wasserstein distance of
  the samples' shares to those of real slices. Beside it stands the distance of two halves of the real people, the mean
  over random halves with the range of 95 % of them.

Reconstructions of the same slices stand beside both: what perfect priors would reach with this decoder.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from vqvae2.common import random_numbers
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import as_text, bootstrap, evenly, summarise, with_interval
from vqvae2.evaluation import consistency, reasons, samples
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import tissue
from vqvae2.models import classifier, encoding
from vqvae2.plots import charts
from vqvae2.priors.conditions import Column
from vqvae2.runs.record import PARTS

STEPS = 600
MOST_TRAINING = 5000
"""Most training slices from which a number is learned, evenly chosen, and as many reconstructions."""
HALVES = 100
SETS = ("samples", "reconstructions", "real")


class AnatomyJudge(Judge):
    """This judge reads what samples were told from them, and compares their shares of tissue with those of real slices.
    """

    name = "anatomy"
    columns = ("figure", "samples", "reconstructions", "real slices")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return {"count", "seed", "told": column -> figures of `read_back`, "tissue": figures of `tissue_figures`},
        and write anatomy.png."""
        settings, split, train = evaluation.settings, evaluation.images, evaluation.data.splits["train"]
        facts = told_alike(split.facts, settings.samples, settings.seed)
        drawn = samples.draw_told(settings, evaluation.vqvae, evaluation.priors, facts, evaluation.out / PARTS, "told")
        pictures = {"samples": drawn, "reconstructions": evaluation.reconstructions, "real": split.bytes()}
        told, plotted = {}, {}
        columns = numeric_columns(evaluation) if len(train) else []
        with Bar(total=len(columns) * STEPS, desc="anatomy: learning to read", unit="step") as bar:
            learned = _learned_from(evaluation, train) if columns else None
            for column in columns:
                values = {"samples": _values(column, facts), **dict.fromkeys(SETS[1:], _values(column, split.facts))}
                read = read_values(column, *learned, pictures, settings.seed,
                                   next(evaluation.vqvae.model.parameters()).device, bar.update)
                told[column.name] = read_back(column, read, values, split.subjects, learned[1], settings.seed)
                plotted[column.name] = {name: (values[name], read[name]) for name in SETS}
        start = tissue.first_mixture(_histograms(train.bytes() if len(train) else split.bytes()))
        shares = {name: tissue.fitted(_histograms(images), start).shares for name, images in pictures.items()}
        charts.anatomy(plotted, {name: {own: found[:, number] for own, found in shares.items()}
                                 for number, name in enumerate(tissue.TISSUES)}, evaluation.out / "anatomy.png")
        return {"count": len(drawn), "seed": settings.seed, "told": told,
                "tissue": tissue_figures(shares, split.subjects, settings.seed)}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each figure, beside what reconstructions and real slices have."""
        return [(f"anatomy, {figure}", f"{value}; reconstructions {again}; real slices {real}")
                for figure, value, again, real in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return two rows for each number that was told, and two for each tissue."""
        rows = []
        for name, found in figures["told"].items():
            guess = as_text(found["blind_mae"], 2)
            rows += [(f"{name}: read from images told it, mean error (a blind guess: {guess})", *(
                with_interval(found[own], "mae", 2, of="mae_", why=reasons.NOTHING_KNOWN) for own in SETS)),
                     (f"{name}: the same, R²", *(
                         with_interval(found[own], "r2", 3, of="r2_", why=reasons.NOTHING_KNOWN) for own in SETS))]
        for name, found in figures["tissue"].items():
            rows += [(f"{name}, mean share of the brain", *(
                with_interval(found[own], "mean", 3, why=reasons.of_tissue(own, "mean")) for own in SETS)),
                     (f"{name}, Wasserstein distance of the shares from real ones", *(
                         with_interval(found[own], "distance", 4, of="distance_",
                                       why=reasons.of_tissue(own, "distance")) for own in SETS))]
        return rows


def told_alike(facts: Sequence[Mapping[str, str]], count: int, seed: int) -> list[Mapping[str, str]]:
    """Return the facts of `count` images in random order, of each image as often as of the others, but for one."""
    order = random_numbers.keys(seed, "whose facts a sample of anatomy is told", np.arange(len(facts))).argsort()
    return [facts[order[number % len(facts)]] for number in range(count)]


def numeric_columns(evaluation: Evaluation) -> list[Column]:
    """Return the columns of numbers that any of the priors is told, without those that are constant in training."""
    columns = {column.name: column for prior in evaluation.priors.values() for column in prior.columns}
    return [column for column in columns.values() if not column.categories and column.least < column.most]


def read_values(column: Column, images: torch.Tensor, facts: Sequence[Mapping[str, str]],
                pictures: Mapping[str, torch.Tensor], seed: int, device: torch.device | str = "cpu",
                tell: Callable[[], object] = lambda: None) -> dict[str, np.ndarray]:
    """Return the values of a column that a network reads from sets of pictures, float64 `[n]` each, in the column's
    unit, after it has learned from `images` and what is known of them.

    All images are uint8 `[n, channels, height, width]`. `tell` is called after each of STEPS steps.
    """
    known = _values(column, facts)
    chosen = np.flatnonzero(np.isfinite(known))
    standard = torch.from_numpy((known[chosen] - column.mean) / column.spread).float()
    model = classifier.trained_to_read(images[chosen], standard, STEPS, random_numbers.generator(
        seed, f"anatomy: learning {column.name}"), device, tell)
    return {name: classifier.readings(model, some).double().numpy() * column.spread + column.mean
            for name, some in pictures.items()}


def read_back(column: Column, read: Mapping[str, np.ndarray], told: Mapping[str, np.ndarray], subjects: Sequence[str],
              training: Sequence[Mapping[str, str]], seed: int) -> dict:
    """Return {"samples", "reconstructions", "real": figures of `agreement`, "blind_mae": the mean error on real images
    of guessing the median of the training images}.

    Args:
        read, told: for each of SETS the values that were read and those that were told, in the column's unit.
        subjects: the subject of each real image; reconstructions are of the same, and samples are independent.
        training: what is known of the training images.
    """
    median = np.nanmedian(_values(column, training))
    known = np.isfinite(told["real"])
    return {**{name: agreement(read[name], told[name], None if name == "samples" else subjects, seed) for name in SETS},
            "blind_mae": float(np.abs(told["real"][known] - median).mean()) if known.any() else None}


def agreement(read: np.ndarray, told: np.ndarray, subjects: Sequence[str] | None, seed: int) -> dict:
    """Return mean absolute error and R² of values that were read, with 95 % intervals by drawing subjects.

    R² is 1 - (mean squared error) / (variance of the told values): 1 is perfect, 0 no better than their mean, and it
    may be below 0. Values that are not known (nan) are left out. A metric is None where no value is left, and R² where
    the values have no spread.

    Args:
        read, told: float64 `[n]`. subjects: of each image; each image is its own subject if None.
    """
    known = np.isfinite(told)
    names = np.arange(len(told)) if subjects is None else np.asarray(subjects)
    _, owner = np.unique(names[known], return_inverse=True)
    error, centred = read[known] - told[known], told[known] - told[known].mean() if known.any() else told[known]
    numbers, absolute, squared, sums, squares = (np.bincount(owner, weights=values) for values in (
        np.ones(len(error)), np.abs(error), error**2, centred, centred**2))

    def mae(drawn: np.ndarray) -> np.ndarray:
        return (drawn @ absolute) / (drawn @ numbers)

    def r2(drawn: np.ndarray) -> np.ndarray:
        spread = drawn @ squares - (drawn @ sums) ** 2 / (drawn @ numbers)
        missed = np.full(len(drawn), np.nan)
        return 1 - np.divide(drawn @ squared, spread, out=missed, where=spread > 1e-9 * max(squares.sum(), 1e-9))

    report = {"images": int(known.sum())}
    for name, figure in (("mae", mae), ("r2", r2)):
        value = figure(np.ones((1, len(numbers))))[0] if len(numbers) else np.nan
        low, high = bootstrap(figure, [len(numbers)], seed) if np.isfinite(value) else (None, None)
        report |= {name: float(value) if np.isfinite(value) else None, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return report


def tissue_figures(shares: Mapping[str, np.ndarray], subjects: Sequence[str], seed: int) -> dict[str, dict]:
    """Return tissue -> each of SETS -> mean share and distance to real shares, each with the ends of its interval.

    Args:
        shares: for each of SETS `[n, 3]`; nan for an image without a brain.
        subjects: the subject of each real image, and of its reconstruction.

    distance: Wasserstein distance of the shares to those of the real images. For `real` it is that of two halves of the
    people, the mean over random halves, and the interval is the range of 95 % of them; the others have none, since
    images drawn with replacement lie further apart than those that were there.
    """
    report: dict[str, dict] = {}
    for number, name in enumerate(tissue.TISSUES):
        of_sets = {own: found[:, number] for own, found in shares.items()}
        report[name] = {}
        for own, values in of_sets.items():
            owners = [str(item) for item in range(len(values))] if own == "samples" else subjects
            means = summarise(torch.from_numpy(values), owners, seed)
            low, high = None, None
            if own == "real":
                apart = _halves(values, subjects, seed)
                distance = float(np.mean(apart)) if apart else None
                low, high = map(float, np.quantile(apart, (0.025, 0.975))) if apart else (None, None)
            else:
                distance = _distance(values, of_sets["real"])
            report[name][own] = {key: means[key] for key in ("mean", "ci_low", "ci_high")} | {
                "distance": distance, "distance_ci_low": low, "distance_ci_high": high}
    return report


def _halves(values: np.ndarray, subjects: Sequence[str], seed: int) -> list[float]:
    """Return the distances between the values of random halves of the subjects; [] of fewer than two subjects."""
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    if len(names) < 2:
        return []
    generator = np.random.default_rng(seed)
    picked = (np.isin(owner, generator.permutation(len(names))[:len(names) // 2]) for _ in range(HALVES))
    found = [_distance(values[some], values[~some]) for some in picked]
    return [distance for distance in found if distance is not None]


def _distance(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the Wasserstein distance of order 1, the area between the distribution functions, of the finite values."""
    first, second = (np.sort(values[np.isfinite(values)]) for values in (first, second))
    if not len(first) or not len(second):
        return None
    steps = np.sort(np.concatenate([first, second]))
    shares = [values.searchsorted(steps[:-1], "right") / len(values) for values in (first, second)]
    return float(abs(shares[0] - shares[1]) @ np.diff(steps))


def _values(column: Column, facts: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Return what is known of a column, float64 `[n]` in its unit, else nan."""
    return np.array([column.number(row.get(column.name, "")) for row in facts]) * column.spread + column.mean


def _learned_from(evaluation: Evaluation, train: ImageSet) -> tuple[torch.Tensor, list[Mapping[str, str]]]:
    """Return training images and their reconstructions, and what is known of them."""
    items, codes = evenly(len(train), MOST_TRAINING), evaluation.training_codes
    images, facts = train.bytes()[items], [train.facts[item] for item in items]
    if codes is None:
        return images, facts
    again = encoding.decoded(evaluation.vqvae.model, {level: maps[items] for level, maps in codes.levels.items()},
                             evaluation.settings.batch)
    return torch.cat([images, again]), facts * 2


def _histograms(images: torch.Tensor) -> np.ndarray:
    """Return the histograms of the brains of uint8 images `[n, channels, height, width]`; colours become their mean."""
    grey = images.float().mean(1).round().byte().numpy()
    return tissue.histograms(grey, consistency.brains(grey[:, None])[:, 0])
