"""Which slice is the previous one, and what a prior is told of it."""

import numpy as np
import pytest
import torch

from vqvae2.common.errors import UserError
from vqvae2.training.neighbours import MOST_HIDDEN, Neighbours, with_codes_hidden


def facts_of(*places, plane="axial"):
    return [{"scan": scan, "plane": plane, "position_mm": str(position)} for scan, position in places]


def test_neighbours_are_the_nearest_slices_of_the_same_scan_and_plane_on_either_side():
    """In the order 12, 10, 11.5, 13 mm of scan a, with one of scan b between and a sagittal slice of a behind."""
    rows = facts_of(("a", 12), ("a", 10), ("b", 11), ("a", 11.5), ("a", 13)) + facts_of(("a", 12), plane="sagittal")
    beside = Neighbours(rows)
    none = [-1] * 4
    assert beside.items.tolist() == [[3, 1, -1, -1, 4, -1, -1, -1], [*none, 3, 0, 4, -1], none * 2,
                                     [1, -1, -1, -1, 0, 4, -1, -1], [0, 3, 1, -1, *none], none * 2]
    np.testing.assert_allclose(beside.offsets_mm[0, [0, 1, 4]], [-0.5, -2, 1])
    np.testing.assert_array_equal(np.isnan(beside.offsets_mm), beside.items < 0)
    assert beside.first.tolist() == [1, 1, 2, 1, 1, 5]


def test_in_validation_it_is_the_nearest_below_or_else_above():
    beside = Neighbours(facts_of(("a", 1), ("a", 2), ("b", 5)))
    items, offsets_mm = beside.nearest(np.array([0, 1, 2]))
    assert items.tolist() == [1, 0, -1]
    np.testing.assert_array_equal(offsets_mm, np.float32([1, -1, np.nan]))


def test_in_training_each_neighbour_has_its_turn_and_it_depends_on_seed_epoch_and_image_alone():
    beside = Neighbours(facts_of(*(("a", position) for position in range(5))))
    middle = [beside.any(np.array([2]), seed=0, epoch=epoch)[0].item() for epoch in range(60)]
    assert set(middle) == {0, 1, 3, 4}  # up to four slices on either side
    together = beside.any(np.arange(5), seed=0, epoch=7)[0]
    assert together.tolist() == [beside.any(np.array([item]), 0, 7)[0].item() for item in range(5)]
    assert {beside.any(np.array([0]), 0, epoch)[0].item() for epoch in range(60)} == {1, 2, 3, 4}


def test_the_column_says_how_far_away_it_is_in_units_of_the_usual_distance():
    column = Neighbours(facts_of(("a", 0), ("a", 2), ("b", 0), ("b", 2))).column()
    assert (column.name, column.spread, column.least, column.most) == ("previous_mm", 2.0, -2.0, 2.0)
    assert column.number("-2") == -1


def test_slices_without_a_place_or_all_alone_are_refused():
    with pytest.raises(UserError, match=r"--condition previous-slice: .*position_mm.* some without.*per-scan all"):
        Neighbours(facts_of(("a", 0), ("a", "")))
    with pytest.raises(UserError, match=r"several slices of a scan, found one of each.*per-scan all"):
        Neighbours(facts_of(("a", 0), ("b", 1)))
    assert len(Neighbours([]).items) == 0


def test_a_share_of_the_codes_is_hidden_that_each_image_draws_for_itself():
    codes = torch.arange(1, 26 * 400 + 1).view(26, 20, 20)
    hidden = with_codes_hidden(codes, np.arange(26), seed=0, epoch=1)
    shares = (hidden < 0).float().mean((1, 2))
    assert 0 <= shares.min() < 0.1
    assert 0.3 < shares.max() < MOST_HIDDEN + 0.06
    assert torch.equal(hidden[hidden >= 0], codes[hidden >= 0])
    assert torch.equal(with_codes_hidden(codes[[5]], np.array([5]), 0, 1), hidden[[5]])
