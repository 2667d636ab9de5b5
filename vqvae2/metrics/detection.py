"""Scores of pixels, and the lesion that each is in -> AUPRC, best Dice, Dice and lesions found at 5 % false alarms.

AUROC flatters where lesions are small: of 100 healthy pixels for each one of a lesion, a score that puts 2 before it
has an AUROC of 0.98 and a precision of a third. So what is found is compared with what was said to be found.

- auprc: the area under precision over recall as a sum of steps (average precision [1]); chance has the lesions' share.
- best_dice: the largest Dice, 2 |found and lesion| / (|found| + |lesion|), that any threshold on the score gives. It is
  chosen on the very lesions that it is judged on.
- dice_at_5_percent: Dice at the lowest threshold that leaves at most 5 % of the healthy pixels above it.
- detected: the share of lesions of which at least half of the pixels lie above that threshold. (With any pixel as the
  rule, noise would find most lesions of 20 pixels.)

Pixels of equal score are taken together. Intervals come from drawing whole subjects, the threshold of each draw being
its own; for these alone scores are counted in BINS bins.

[1] Davis, Goadrich 2006, The relationship between precision-recall and ROC curves.
"""

import numpy as np

from vqvae2.common import statistics

FALSE_ALARMS = 0.05
BINS = 1000
FIGURES = ("auprc", "best_dice", "dice_at_5_percent", "detected")


def figures(scores: np.ndarray, lesions: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Return each of FIGURES, exactly.

    Args:
        scores: `[pixels]`, high where a lesion is thought to be. lesions: the number of the lesion that each pixel is
            in, -1 for none; both kinds occur. owners: the number of the subject of each pixel.
    """
    bins = np.unique(-scores, return_inverse=True)[1]
    counts = _counts(bins, lesions, np.zeros_like(owners))
    return {name: float(values[0]) for name, values in _figures(np.ones((1, 1)), *counts).items()}


def with_intervals(scores: np.ndarray, lesions: np.ndarray, owners: np.ndarray, seed: int,
                   resamples: int = statistics.RESAMPLES) -> dict[str, float | None]:
    """Return `figures`, and of each the ends of its 95 % interval as <figure>_ci_low and <figure>_ci_high.

    Args: as for `figures`. seed: of the draws of subjects.
    """
    # Recall rises in the scores of lesions, and the threshold lies in the upper scores of healthy pixels.
    edges = np.unique(np.concatenate([np.quantile(scores[lesions >= 0], np.linspace(0, 1, BINS)),
                                      np.quantile(scores[lesions < 0], np.linspace(1 - 2 * FALSE_ALARMS, 1, BINS))]))
    bins = len(edges) - np.searchsorted(edges, scores, "right")
    counts = _counts(bins, lesions, owners)
    found = figures(scores, lesions, owners)
    for name in FIGURES:
        low, high = statistics.bootstrap(lambda drawn, name=name: _figures(drawn, *counts)[name],
                                         [int(owners.max()) + 1], seed, resamples)
        found |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
    return found


def _counts(bins: np.ndarray, lesions: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each subject and bin, the highest scores first, the number of pixels of lesions, of healthy pixels,
    and of lesions half of whose pixels have been passed there: each float `[subjects, bins]`."""
    shape = int(owners.max()) + 1, int(bins.max()) + 1
    inside = lesions >= 0

    def counted(whose: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(whose * shape[1] + where, minlength=shape[0] * shape[1]).reshape(shape).astype(float)

    order = np.lexsort((bins[inside], lesions[inside]))
    _, first, sizes = np.unique(lesions[inside][order], return_index=True, return_counts=True)
    middle = order[first + (sizes - 1) // 2]  # half of the lesion, rounded up, is in this bin or before it
    return (counted(owners[inside], bins[inside]), counted(owners[~inside], bins[~inside]),
            counted(owners[inside][middle], bins[inside][middle]))


def _figures(drawn: np.ndarray, inside: np.ndarray, outside: np.ndarray,
             lesions: np.ndarray) -> dict[str, np.ndarray]:
    """Return each of FIGURES `[draws]`; `drawn` `[draws, subjects]` is how often each subject is drawn."""
    hits, alarms, found = (np.cumsum(drawn @ counts, 1) for counts in (inside, outside, lesions))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = hits[:, -1:]
        precision = np.where(hits > 0, hits / (hits + alarms), 0)
        dice = 2 * hits / (hits + alarms + total)
        # Before the first bin nothing is above the threshold.
        last = (alarms <= FALSE_ALARMS * alarms[:, -1:]).sum(1)

        def there(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(np.pad(values, ((0, 0), (1, 0))), last[:, None], 1)[:, 0]

        auprc = (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / total[:, 0]
        return {"auprc": auprc, "best_dice": dice.max(1), "dice_at_5_percent": there(dice),
                "detected": there(found) / found[:, -1]}
