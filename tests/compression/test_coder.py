"""Range coder: symbols and integer tables <-> bytes."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from vqvae2.compression import coder


def tables(rows, symbols, seed, sharpness):
    """Random frequencies of `symbols` symbols: sharp ones give nearly everything to one of them."""
    weights = np.random.default_rng(seed).random((rows, symbols)) ** sharpness + 1e-9
    found = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (coder.TOTAL - 2 * symbols)).astype(np.int64)
    found[:, 0] += coder.TOTAL - found.sum(1)
    return found


def encoded(symbols, frequencies):
    """The bytes of symbols, each by its own table `[n, K]` of frequencies."""
    rows = np.arange(len(symbols))
    ends = np.cumsum(frequencies, 1)[rows, symbols]
    encoder = coder.Encoder()
    encoder.encode(ends - frequencies[rows, symbols], ends)
    return encoder.bytes()


@settings(deadline=None, max_examples=60)
@given(strategies.integers(1, 300), strategies.integers(2, 520), strategies.integers(0, 10**6),
       strategies.sampled_from([0.1, 1, 30, 400]))
def test_symbols_come_back_and_cost_what_their_frequencies_say(rows, symbols, seed, sharpness):
    frequencies = tables(rows, symbols, seed, sharpness)
    drawn = np.random.default_rng(seed).integers(0, symbols, rows)
    data = encoded(drawn, frequencies)
    decoder = coder.Decoder(data)
    half = rows // 2
    assert [*decoder.decode(frequencies[:half]), *decoder.decode(frequencies[half:])] == drawn.tolist()
    bits = (coder.PRECISION - np.log2(frequencies[np.arange(rows), drawn])).sum()
    assert bits - 1 <= 8 * len(data) <= bits * 1.0001 + 64


@settings(deadline=None, max_examples=60)
@given(strategies.integers(0, 10**6), strategies.integers(1, 60))
def test_symbols_that_own_all_numbers_but_one_come_back(seed, rows):
    """With a table of two symbols of which the other has 1, and with tables of three and more between."""
    draws = np.random.default_rng(seed)
    first = draws.choice([1, 2, 3, coder.TOTAL - 2, coder.TOTAL - 1], rows)
    frequencies = np.stack([first, coder.TOTAL - first], 1)
    symbols = draws.integers(0, 2, rows)
    assert coder.Decoder(encoded(symbols, frequencies)).decode(frequencies).tolist() == symbols.tolist()


def test_only_the_two_ends_of_a_symbol_in_its_table_matter():
    frequencies = np.array([[10, 20, 5, 3, coder.TOTAL - 38]] * 40)
    others = np.array([[20, 10, 5, 1, coder.TOTAL - 36]] * 40)  # the third begins at 30 and ends at 35 in both
    assert set(coder.Decoder(encoded(np.full(40, 2), frequencies)).decode(others)) == {2}


def test_the_order_in_which_a_table_lies_in_memory_does_not_matter():
    frequencies = tables(300, 16, 1, 30)
    drawn = np.random.default_rng(1).integers(0, 16, 300)
    by_columns = np.asfortranarray(frequencies)
    data = encoded(drawn, by_columns)
    assert data == encoded(drawn, frequencies)
    assert coder.Decoder(data).decode(by_columns).tolist() == drawn.tolist()


def test_the_bytes_of_a_known_message_stay():
    first, second = [1, 2**20, 2**23], [99, 2**22, 7]
    frequencies = np.array([[*part, coder.TOTAL - sum(part)] for part in (first, second)])
    data = encoded(np.arange(16) % 4, np.tile(frequencies, (8, 1)))
    assert data.hex() == "0c000000518020007faa8bfefa1a17c5"


def test_bytes_that_no_coder_writes_are_refused():
    with pytest.raises(ValueError, match="not written"):
        coder.Decoder(b"\xff" * 400).decode(tables(200, 16, 0, 5))
