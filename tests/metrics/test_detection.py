"""What is found is compared with what was said to be found: each figure against a slow, obvious count."""

import numpy as np
import pytest

from vqvae2.metrics import detection


def pixels(seed, number=300, values=25):
    """Scores with many ties, lesions of ten pixels or so, and three subjects."""
    rng = np.random.default_rng(seed)
    lesions = np.where(rng.random(number) < 0.2, rng.integers(0, 6, number), -1)
    owners = np.where(lesions >= 0, lesions // 2, rng.integers(0, 3, number))
    return rng.integers(0, values, number) / values + 0.2 * (lesions >= 0), lesions, owners


def slowly(scores, lesions):
    """Every threshold in turn."""
    inside, area, before, dice, at_5, detected = lesions >= 0, 0.0, 0.0, [], 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        recall, precision = above[inside].mean(), inside[above].mean()
        area, before = area + (recall - before) * precision, recall
        dice.append(2 * (above & inside).sum() / (above.sum() + inside.sum()))
        if above[~inside].mean() <= 0.05:
            at_5 = dice[-1]
            detected = np.mean([above[lesions == number].mean() >= 0.5 for number in set(lesions) - {-1}])
    return {"auprc": area, "best_dice": max(dice), "dice_at_5_percent": at_5, "detected": detected}


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_going_through_every_threshold(seed):
    scores, lesions, owners = pixels(seed)
    assert detection.figures(scores, lesions, owners) == pytest.approx(slowly(scores, lesions))


def test_auprc_is_scikit_learns_average_precision():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, lesions, owners = pixels(7, number=2000, values=200)
    assert detection.figures(scores, lesions, owners)["auprc"] == pytest.approx(
        metrics.average_precision_score(lesions >= 0, scores))


def test_a_score_that_is_the_mask_is_perfect_and_one_that_is_constant_finds_nothing():
    _, lesions, owners = pixels(1)
    assert set(detection.figures((lesions >= 0) * 1.0, lesions, owners).values()) == {1.0}
    flat = detection.figures(np.zeros(len(lesions)), lesions, owners)
    share = (lesions >= 0).mean()
    assert flat == pytest.approx({"auprc": share, "best_dice": 2 * share / (1 + share), "dice_at_5_percent": 0,
                                  "detected": 0})


def test_a_lesion_is_detected_where_half_of_it_lies_above_the_threshold_of_5_percent():
    """The threshold is at 0.8, which two of 40 healthy pixels reach, two of four of lesion 0, one of lesion 1."""
    healthy = np.r_[0.8, 0.8, np.zeros(38)]
    lesion = np.array([0.9, 0.8, -0.1, -0.1, 0.9, -0.1, -0.1, -0.1])
    found = detection.figures(np.r_[healthy, lesion], np.r_[[-1] * 40, [0] * 4, [1] * 4], np.zeros(48, int))
    assert found["detected"] == 0.5
    assert found["dice_at_5_percent"] == pytest.approx(2 * 3 / (5 + 8))


def test_the_interval_is_that_of_drawing_whole_subjects():
    scores, lesions, owners = pixels(3)
    found = detection.with_intervals(scores, lesions, owners, seed=7, resamples=60)
    slow = []
    for times in np.random.default_rng(7).multinomial(3, [1 / 3] * 3, size=60):
        drawn = np.concatenate([np.flatnonzero(owners == subject) for subject in range(3)
                                for _ in range(times[subject])])
        copy = np.concatenate([np.full((owners == subject).sum(), number) for subject in range(3)
                               for number in range(times[subject])])
        again = np.where(lesions[drawn] >= 0, lesions[drawn] + 10 * copy, -1)  # drawn twice, a lesion is two
        slow.append(slowly(scores[drawn], again))
    for name in detection.FIGURES:
        low, high = np.quantile([one[name] for one in slow], (0.025, 0.975))
        assert (found[f"{name}_ci_low"], found[f"{name}_ci_high"]) == pytest.approx((low, high))
    assert {name: found[name] for name in detection.FIGURES} == pytest.approx(slowly(scores, lesions))
