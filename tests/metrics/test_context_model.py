"""Maps from the order-2 model: its draws have the frequencies that a table of probabilities has."""

import fields
import numpy as np
import pytest
import torch

from vqvae2.metrics import context_model


def table_of(train, size):
    """p(code | left, above), `[size + 1, size + 1, size]`, by counting with loops."""
    k = context_model.context_concentrations(train, size)
    both, left, above = (np.zeros((*[size + 1] * order, size)) for order in (2, 1, 1))
    for codes in train:
        for row in range(codes.shape[0]):
            for column in range(codes.shape[1]):
                at_left = codes[row, column - 1] if column else size
                at_top = codes[row - 1, column] if row else size
                for counts in (both[at_left, at_top], left[at_left], above[at_top]):
                    counts[codes[row, column]] += 1

    def estimate(counts, concentration, coarser):
        return (counts + concentration * coarser) / (counts.sum(-1, keepdims=True) + concentration)

    histogram = estimate(np.bincount(train.ravel(), minlength=size), k["all"], 1 / size)
    sides = estimate(left, k["left"], histogram)[:, None], estimate(above, k["above"], histogram)[None]
    return estimate(both, k["both"], (sides[0] + sides[1]) / 2)


def neighbours_of(maps, size):
    framed = np.pad(maps, ((0, 0), (1, 0), (1, 0)), constant_values=size)
    return framed[:, 1:, :-1], framed[:, :-1, 1:]


@pytest.fixture(scope="module")
def few_codes():
    """Twelve training maps with structure: every estimate, the coarse ones too, has a say."""
    return fields.order_that_hides(5).draw(12, seed=0)[0]


@pytest.fixture(scope="module")
def drawn(few_codes):
    return context_model.draw(few_codes, 6, 3000, seed=1, level="top").numpy()


def test_codes_follow_their_neighbours_as_often_as_the_table_of_probabilities_says(few_codes, drawn):
    """6 codes, of which training never had the last; each of the 49 contexts, edges included, by a chi-squared test."""
    table = table_of(few_codes, 6)
    left, above = neighbours_of(drawn, 6)
    statistic = freedom = 0
    for at_left, at_top in np.ndindex(7, 7):
        found = np.bincount(drawn[(left == at_left) & (above == at_top)], minlength=6)
        expected = found.sum() * table[at_left, at_top]
        often = expected > 5
        statistic += ((found - expected)[often] ** 2 / expected[often]).sum()
        freedom += max(0, often.sum() - 1)
    assert freedom > 100
    assert statistic == pytest.approx(freedom, abs=4 * np.sqrt(2 * freedom))


def test_draws_cost_the_model_itself_its_entropy(few_codes, drawn):
    """Bits by metrics.context_model_bits beside the mean entropy of the table's rows where the draws went."""
    table = table_of(few_codes, 6)
    entropy = -(table * np.log2(table)).sum(-1)[neighbours_of(drawn, 6)].mean()
    assert context_model.context_model_bits(few_codes, drawn, 6)["context"] == pytest.approx(entropy, abs=0.01)
    assert entropy < context_model.context_model_bits(few_codes, drawn, 6)["histogram"] - 0.02


def test_a_code_that_its_neighbours_decide_is_drawn_as_they_decide_it():
    """Each code is left + above modulo 7 inside, random on the edges."""
    codes = np.random.default_rng(3).integers(0, 7, (300, 12, 12))
    for row in range(1, 12):
        for column in range(1, 12):
            codes[:, row, column] = (codes[:, row, column - 1] + codes[:, row - 1, column]) % 7
    made = context_model.draw(codes, 7, 50, seed=0, level="bottom").numpy()
    right = made[:, 1:, 1:] == (made[:, 1:, :-1] + made[:, :-1, 1:]) % 7
    assert right.mean() > 0.999
    assert np.bincount(made[:, 0].ravel(), minlength=7) / 600 == pytest.approx(np.full(7, 1 / 7), abs=0.06)


def test_a_map_is_the_same_whatever_the_count_and_another_by_seed_and_level(few_codes):
    def of(count, seed, level, first=0):
        return context_model.draw(few_codes, 6, count, seed, level, first)

    five = of(5, 1, "top")
    assert torch.equal(of(2, 1, "top"), five[:2])
    assert torch.equal(of(2, 1, "top", first=3), five[3:])
    for other in (of(5, 2, "top"), of(5, 1, "bottom")):
        assert (other != five).float().mean() > 0.3


def test_maps_need_not_be_square_and_one_training_map_is_enough():
    train = torch.tensor([[[0, 1, 2], [1, 2, 0]]], dtype=torch.int16)
    made = context_model.draw(train, 3, 4, seed=0, level="top")
    assert made.shape == (4, 2, 3)
    assert made.dtype == torch.int64
    assert made.min() >= 0
    assert made.max() < 3


def test_maps_yet_to_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"train_codes: .*\[0, 3\).* with -1 to 0"):
        context_model.draw(np.array([[[0, -1]]]), 3, 1, seed=0, level="top")


def test_of_very_many_codes_evenly_chosen_maps_stand_for_all(few_codes, monkeypatch):
    size, test = few_codes.max() + 1, few_codes[:5].astype(np.int16)
    monkeypatch.setattr(context_model, "MOST_CODES", 3 * few_codes[0].size)
    assert context_model.context_model_bits(few_codes, test, size) == context_model.context_model_bits(
        few_codes[[0, 6, 11]], test[[0, 2, 4]], size)  # 5.5 is rounded to even
