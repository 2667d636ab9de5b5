"""Intervals, even choices and numbers as text, by hand."""

import numpy as np
import pytest

from vqvae2.common import statistics


@pytest.mark.parametrize(("number", "most", "expected"), [
    (6, 3, [0, 2, 5]), (3, 8, [0, 1, 2]), (1, 8, [0]), (0, 8, [])])
def test_even_choices_are_all_different_and_have_the_first_and_the_last(number, most, expected):
    assert statistics.evenly(number, most).tolist() == expected


def test_a_figure_that_no_draw_has_has_no_interval():
    assert statistics.bootstrap(lambda drawn: np.full(len(drawn), np.nan), [3], seed=0) == (None, None)


def test_draws_without_a_figure_are_left_out_of_an_interval():
    """The share of the first of two subjects, where both are drawn: always one half."""
    def share(drawn):
        return np.where(drawn.min(1) > 0, drawn[:, 0] / 2, np.nan)
    assert statistics.bootstrap(share, [2], seed=0) == (0.5, 0.5)


def test_subjects_of_two_lists_are_compared_only_where_they_are_comparable():
    """The second pair has another scale: 9 above 8 would win, 1 below 2 loses."""
    inside, outside = [np.array([9.0]), np.array([1.0])], [np.array([8.0]), np.array([2.0])]
    assert statistics.auroc(inside, outside, 0, comparable=np.eye(2, dtype=bool))["auroc"] == 0.5


@pytest.mark.parametrize(("value", "expected"), [(0.12349, "0.123"), (-0.0001, "0.000"), (None, "–")])
def test_a_number_has_its_digits_no_negative_zero_and_a_dash_where_it_is_not_defined(value, expected):
    assert statistics.as_text(value, 3) == expected


def test_an_interval_stands_in_brackets_where_there_is_one():
    figures = {"mean": 0.5, "ci_low": 0.25, "ci_high": 0.75}
    assert statistics.with_interval(figures, "mean", 2) == "0.50 (0.25 to 0.75)"
    assert statistics.with_interval(figures | {"ci_low": None}, "mean", 2) == "0.50"
    assert statistics.with_interval(None, "mean", 2) == "–"


def test_an_interval_of_all_draws_reaches_from_the_least_to_the_largest():
    """One of two subjects may be drawn twice: the mean is then 0 or 1."""
    def mean(drawn):
        return drawn @ np.array([0.0, 1.0]) / 2
    assert statistics.bootstrap(mean, [2], 0, ends=(0.0, 1.0)) == (0, 1)
