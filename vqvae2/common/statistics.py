"""Numbers per image or subject -> means, intervals, AUROC, and numbers as text for reports.

1. Efron, Tibshirani 1993, An introduction to the bootstrap.
2. Hanley, McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

RESAMPLES = 1000
ENDS = (0.025, 0.975)
"""The ends of a 95 % interval, as shares of the draws."""


def summarise(values: torch.Tensor, subjects: Sequence[str], seed: int, resamples: int = RESAMPLES) -> dict:
    """Return mean, min, max, q05, median, q95, and the mean's 95 % interval ci_low, ci_high, in the values' unit.

    Args:
        values: `[n]`, one per image; nan values are left out. All results are None if no value is left.
        subjects: the subject of each image. Images of one subject resemble each other, so the interval comes from
            drawing whole subjects with replacement and taking the mean over their images (percentile bootstrap,
            reference 1, chapter 13). With one subject the interval has no width.
        seed: seed of the random draws; the order of the images changes nothing.
    Raises: ValueError if `values` and `subjects` differ in length.
    """
    array = values.detach().cpu().double().numpy()
    if len(array) != len(subjects):
        raise ValueError(f"subjects: expected one for each of {len(array)} values, found {len(subjects)}.")
    kept = ~np.isnan(array)
    array, names = array[kept], np.asarray(subjects, dtype=str)[kept]
    if len(array) == 0:
        return dict.fromkeys(("mean", "min", "max", "q05", "median", "q95", "ci_low", "ci_high"))
    _, subject = np.unique(names, return_inverse=True)
    images, sums = np.bincount(subject), np.bincount(subject, weights=array)
    low, high = bootstrap(lambda drawn: (drawn @ sums) / (drawn @ images), [len(images)], seed, resamples)
    figures = {"mean": array.mean(), "min": array.min(), "max": array.max(), "q05": np.quantile(array, 0.05),
               "median": np.median(array), "q95": np.quantile(array, 0.95), "ci_low": low, "ci_high": high}
    return {name: float(value) for name, value in figures.items()}


def bootstrap(figure: Callable[..., np.ndarray], numbers: Sequence[int], seed: int | np.random.Generator,
              resamples: int = RESAMPLES, ends: tuple[float, float] = ENDS) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % percentile interval of a metric over subjects drawn with replacement (reference 1).

    Args:
        figure: function from the number of times that each subject is drawn, one float `[resamples, subjects]` per set
            of subjects, to the metric of each draw, `[resamples]`; nan where the metric is not defined.
        numbers: the number of subjects in each set. The sets are drawn independently of each other.
        seed: of the draws, or a generator.
        ends: shares of the draws that lie below the ends of the interval; (0, 1) are the least and the largest draw.
    Returns: (None, None) if the metric is not defined for any draw.
    """
    generator = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):
        values = figure(*(generator.multinomial(number, np.full(number, 1 / number), size=resamples).astype(float)
                          for number in numbers))
    if np.isnan(values).all():
        return None, None
    low, high = np.nanquantile(values, ends)
    return float(low), float(high)


def auroc(inside: Sequence[np.ndarray], outside: Sequence[np.ndarray], seed: int, *,
          comparable: np.ndarray | None = None, same_subjects: bool = False, resamples: int = RESAMPLES,
          ends: tuple[float, float] = ENDS) -> dict:
    """Return {"auroc", "ci_low", "ci_high"}: 1 if every score inside is above every score outside, 0.5 is guessing.

    Args:
        inside: the scores of the pixels or images to be found, an array for each subject, possibly empty.
        outside: the other scores, likewise.
        seed: of the draws of subjects.
        comparable: bool `[subjects inside, subjects outside]`, True where the scores of the two subjects have a common
            scale; None: all have.
        same_subjects: whether both lists are of the same subjects, who are then drawn once for both.
        ends: as for `bootstrap`.

    AUROC is the Mann-Whitney statistic over its largest value, ties counting one half (reference 2): a sum over pairs
    of a score inside and one outside. The pairs are counted once for each two subjects; the AUROC of a draw of subjects
    is then exactly a weighted sum of these counts, and the scores are not needed again.
    """
    ranked = [np.sort(scores) for scores in outside]
    wins = np.array([[(np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")).sum() / 2
                      for others in ranked] for scores in inside])
    pairs = np.outer([len(scores) for scores in inside], [len(scores) for scores in outside])
    wins, pairs = (counts * (1.0 if comparable is None else comparable) for counts in (wins, pairs))

    def of(drawn: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        beside = drawn if same_subjects else others
        won, possible = (((drawn @ counts) * beside).sum(1) for counts in (wins, pairs))
        return won / possible

    low, high = bootstrap(of, wins.shape[:1] if same_subjects else wins.shape, seed, resamples, ends)
    return {"auroc": float(wins.sum() / pairs.sum()), "ci_low": low, "ci_high": high}


def by_group(values: np.ndarray, groups: np.ndarray, number: int) -> list[np.ndarray]:
    """Return the values of each group; `groups` has the group of each value, integers in [0, number)."""
    order = np.argsort(groups, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(groups, minlength=number))[:-1])


def evenly(number: int, most: int) -> np.ndarray:
    """Return at most `most` of the integers 0…number - 1, evenly chosen, the first and the last among them."""
    return np.linspace(0, number - 1, min(most, number)).round().astype(int)


def as_text(value: float | None, digits: int, why: str = "") -> str:
    """Return a number with `digits` digits after the point; a dash, and `why` in brackets, for one that is not defined.
    """
    if value is None:
        return f"– ({why})" if why else "–"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.000


def with_interval(figures: Mapping[str, float | None] | None, key: str, digits: int, *, before: str = "",
                  of: str = "", why: str = "") -> str:
    """Return a metric as text, followed in brackets by its 95 % interval `ci_low` to `ci_high` where there is one.

    Args:
        figures: a dictionary with the metric and its interval; None becomes a dash.
        before: the first words within the brackets.
        of: prefix of the keys of the interval's ends.
        why: why the metric is not defined, where it is not.
    """
    text = as_text(figures and figures[key], digits, why)
    ends = [as_text(figures and figures.get(f"{of}{end}"), digits) for end in ("ci_low", "ci_high")]
    return text if "–" in ends else f"{text} ({before}{ends[0]} to {ends[1]})"
