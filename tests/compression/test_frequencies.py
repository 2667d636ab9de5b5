"""Logits -> integer tables, and where rounding noise could tip them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.compression import coder, frequencies

LOGITS = st.builds(lambda seed, symbols, scale: torch.randn(40, symbols, dtype=torch.float64, generator=torch.Generator(
    ).manual_seed(seed)) * scale, st.integers(0, 10**6), st.integers(2, 300), st.sampled_from([0.0, 0.1, 3.0, 40.0]))


@given(LOGITS)
def test_each_symbol_has_at_least_1_and_all_have_2_to_the_24(logits):
    found = frequencies.frequencies(frequencies.ends(logits))
    assert (found >= 1).all()
    assert (found == np.rint(found)).all()
    assert (found.sum(1) == coder.TOTAL).all()


@given(LOGITS)
def test_frequencies_are_near_the_probabilities(logits):
    found = frequencies.frequencies(frequencies.ends(logits)) / coder.TOTAL
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), 
                               atol=(2 * frequencies.STEP + logits.shape[1]) / coder.TOTAL)


@given(LOGITS, st.integers(0, 10**6))
def test_noise_below_the_margin_moves_no_end_of_a_symbol_that_is_not_doubtful(logits, seed):
    draws = np.random.default_rng(seed)
    places, symbols = frequencies.ends(logits), draws.integers(0, logits.shape[1], len(logits))
    noisy = places + draws.uniform(-1, 1, places.shape) * 0.99e-3 * frequencies.steps(logits.shape[1])
    noisy = np.maximum.accumulate(noisy, 1).clip(0)
    sure = ~frequencies.is_doubtful(places, symbols, 1e-3)
    tables = [frequencies.frequencies(each)[sure] for each in (places, places + (noisy - places))]
    ends = [np.cumsum(table, 1)[np.arange(len(table)), symbols[sure]] for table in tables]
    starts = [end - table[np.arange(len(table)), symbols[sure]] for end, table in zip(ends, tables)]
    assert (ends[0] == ends[1]).all()
    assert (starts[0] == starts[1]).all()


def test_places_next_to_where_rounding_changes_are_doubtful_for_the_symbols_on_both_sides():
    places = np.array([[11 - frequencies.OFFSET - 1e-6, 20.0, 30.3]] * 4)
    doubtful = frequencies.is_doubtful(places, np.arange(4), 1e-6 * 1.5 / frequencies.steps(4))
    assert doubtful.tolist() == [True, True, False, False]


@given(LOGITS, st.integers(0, 10**6))
def test_what_a_symbol_owns_is_its_part_of_the_whole_table(logits, seed):
    places = frequencies.ends(logits)
    symbols = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    ends = np.cumsum(frequencies.frequencies(places), 1)
    starts, stops = frequencies.owned(places, symbols)
    assert (stops == ends[np.arange(len(ends)), symbols]).all()
    assert (starts == (ends - frequencies.frequencies(places))[np.arange(len(ends)), symbols]).all()


@given(st.integers(2, 3000))
def test_uniform_tables_give_all_symbols_the_same_but_for_1(symbols):
    found = np.diff(frequencies.uniform(symbols))
    assert found.sum() == coder.TOTAL
    assert found.max() - found.min() <= 1
