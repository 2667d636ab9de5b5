"""Numbers of some images or subjects -> what a report says of them."""

from collections.abc import Sequence

import numpy as np
import torch


def summarise(values: torch.Tensor, subjects: Sequence[str], seed: int, resamples: int = 1000) -> dict:
    """Return mean, min, max, q05, median, q95, and the mean's 95 % interval ci_low, ci_high, in the values' unit.

    Args:
        values: `[n]`, one per image; nan values are left out. All figures are None if nothing is left.
        subjects: whose image each is. Images of one subject resemble each other, so that the interval comes from
            drawing whole subjects with replacement and taking the mean over their images (percentile bootstrap,
            reference 3, chapter 13). One subject gives an interval of no width.
        seed: of the draws; the order of the images changes nothing.
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
    number = len(images)
    times_drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    means = (times_drawn @ sums) / (times_drawn @ images)
    figures = {"mean": array.mean(), "min": array.min(), "max": array.max(), "q05": np.quantile(array, 0.05),
               "median": np.median(array), "q95": np.quantile(array, 0.95),
               "ci_low": np.quantile(means, 0.025), "ci_high": np.quantile(means, 0.975)}
    return {name: float(value) for name, value in figures.items()}
